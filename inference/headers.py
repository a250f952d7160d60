"""Reading other people's headers: nothing a sender wrote into an attribute may raise here."""

from __future__ import annotations

import re
import struct
import threading
import unicodedata
import warnings
import zlib
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, ExitStack

from pydicom import Dataset
from pydicom import config as pydicom_config
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as DicomSequence

#: What pydicom raises while it converts a value, parses a data set or decodes a frame.
#: MemoryError is not here: that is this machine's state, not the sender's mistake.
PYDICOM_ERRORS = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class _Tolerance:
    """pydicom's checks and Python's warnings, off while any thread is inside.

    Both are settings of the process. Had each thread saved and restored them by itself, the first
    to leave would have switched them on again for the others, or off for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._off = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._off.enter_context(warnings.catch_warnings(action="ignore"))
                self._off.enter_context(pydicom_config.disable_value_validation())
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._off.close()


_tolerance = _Tolerance()


def tolerant() -> AbstractContextManager[None]:
    """Switch pydicom's checks and warnings off: a wrong value is judged here, not there.

    Several threads may be inside at once; meanwhile nobody in the process is warned.
    """
    return _tolerance


def values(header: Dataset, keyword: str) -> tuple[object, ...]:
    """Return the values of an attribute; () when it is absent, empty or can't be converted."""
    try:
        value = header[keyword].value if keyword in header else None
    except PYDICOM_ERRORS:
        return ()
    if value is None or value == "" or isinstance(value, DicomSequence):
        return ()
    return tuple(value) if isinstance(value, MultiValue | list | tuple) else (value,)


def text(header: Dataset, keyword: str) -> str:
    """Return the values as one stripped string, joined by a backslash (PS3.5 6.4)."""
    strings = (v.decode("latin-1") if isinstance(v, bytes) else v for v in values(header, keyword))
    return "\\".join(str(v) for v in strings).strip(" \0")


def cs(header: Dataset, keyword: str) -> str:
    """Return ``text`` in capitals with single spaces: how a CS is compared (PS3.5 6.2)."""
    return " ".join(text(header, keyword).upper().split())


def number(header: Dataset, keyword: str) -> float | None:
    """Return the first value as a number; None when there is none."""
    try:
        return float(str(values(header, keyword)[0]))
    except (IndexError, ValueError):
        return None


def integer(header: Dataset, keyword: str) -> int | None:
    """Return the first value as a whole number; None when there is none."""
    value = number(header, keyword)
    return int(value) if value is not None and value.is_integer() else None


def items(header: Dataset, keyword: str) -> tuple[Dataset, ...]:
    """Return the items of a sequence; () when it is absent or isn't one."""
    try:
        value = header[keyword].value if keyword in header else None
        return tuple(value) if isinstance(value, DicomSequence) else ()
    except PYDICOM_ERRORS:
        return ()


def words(line: str) -> tuple[str, ...]:
    """Split into words without case, accents and digits: "Tórax P.A." -> ("torax", "pa")."""
    plain = unicodedata.normalize("NFKD", line.casefold())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    # German abbreviations of the projection, as typed into series descriptions.
    plain = re.sub(r"\b([ap])\.\s?([ap])\b", r"\1\2", plain)
    return tuple(re.findall(r"[^\W\d_]+", plain))


def mentions(found: Iterable[str], wanted: Collection[str]) -> bool:
    """Tell whether a word of ``wanted`` occurs in ``found``; ``thorax*`` stands for a prefix."""
    exact = {w for w in wanted if not w.endswith("*")}
    prefixes = tuple(w[:-1] for w in wanted if w.endswith("*"))
    return any(word in exact or (bool(prefixes) and word.startswith(prefixes)) for word in found)
