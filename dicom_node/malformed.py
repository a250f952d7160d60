"""What pydicom lets out on bytes that are no data set: one list for all who parse what was sent."""

from __future__ import annotations

import struct
import zlib

from pydicom.errors import BytesLengthException, InvalidDicomError

#: Found by fuzzing. Their messages may quote values: never keep one as a cause or in a log.
MALFORMED = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,  # KeyError: unknown VR
    OSError,
    RuntimeError,  # RecursionError: sequences nested deeper than our stack; NotImplementedError
    TypeError,
    ValueError,  # UnicodeError
    struct.error,
    zlib.error,
)
