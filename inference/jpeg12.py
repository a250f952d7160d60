"""A decoder plug-in of pydicom for 12-bit JPEG Extended (1.2.840.10008.1.2.4.51).

pydicom 3.0 lets no freely licensed plug-in decode it: its own gdcm plug-in refuses anything but
8 bits. gdcm 3.2 can; on pydicom's JPGExtended.dcm it equals DCMTK's decoder bit for bit, and
python-gdcm issue 35 says the same of dcm4che. (The line "Unsupported JPEG data precision 12" that
gdcm writes to stderr comes from its first, 8-bit attempt.)
"""

from __future__ import annotations

import gdcm  # type: ignore[import-untyped]
from pydicom.pixels.decoders.base import DecodeRunner, JPEGExtended12BitDecoder
from pydicom.uid import JPEGExtended12Bit

DECODER_DEPENDENCIES = {JPEGExtended12Bit: ("gdcm>=3.2",)}  # pydicom asks a plug-in for this name

_LABEL = "gdcm-12-bit"


def register() -> None:
    """Make the plug-in known to pydicom, once in a process."""
    if _LABEL not in JPEGExtended12BitDecoder.available_plugins:
        JPEGExtended12BitDecoder.add_plugin(_LABEL, (__name__, "decode"))


def is_available(uid: str) -> bool:
    """Tell pydicom whether ``uid`` is decoded here."""
    return uid in DECODER_DEPENDENCIES


def decode(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode one frame into Rows x Columns cells of BitsAllocated bits."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())

    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(str(runner.photometric_interpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    stored = runner.bits_stored
    image.SetPixelFormat(
        gdcm.PixelFormat(
            runner.samples_per_pixel,
            runner.bits_allocated,
            stored,
            stored - 1,
            runner.pixel_representation,
        )
    )
    # gdcm hands out char* as str.
    decoded: str = image.GetBuffer()
    return decoded.encode("utf-8", "surrogateescape")
