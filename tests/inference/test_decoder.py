"""Codecs in a child with limits."""

from __future__ import annotations

import time
from io import BytesIO

import pytest
from pydicom import Dataset, dcmread
from pydicom import uid as uids
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder

from inference import decoder, jpeg12
from inference.findings import UnreadablePixels


def stored(name: str) -> Dataset:
    path = get_testdata_file(name)
    assert isinstance(path, str)
    return dcmread(path)


def refusal(ds: Dataset, *, seconds: float = 60) -> UnreadablePixels:
    with pytest.raises(UnreadablePixels) as refused:
        decoder.decode(ds, seconds=seconds)
    assert refused.value.code == "UNDECODABLE"
    return refused.value


def damaged(name: str, marker: bytes, at: int, value: int) -> Dataset:
    """Change one byte of the first frame, ``at`` bytes after ``marker``."""
    ds = stored(name)
    frame = bytearray(next(generate_frames(ds.PixelData, number_of_frames=1)))
    frame[frame.index(marker) + at] = value
    ds.PixelData = encapsulate([bytes(frame)])
    return ds


def test_a_child_gives_what_the_same_process_gives() -> None:
    ds = stored("MR_small_jp2klossless.dcm")
    assert (decoder.decode(ds, seconds=60) == stored("MR_small.dcm").pixel_array).all()


def test_a_codec_that_kills_its_process_is_a_refusal() -> None:
    # ITU-T T.81 B.2.2: SOF1, length (2 bytes), precision; gdcm 3.2.6 dies of precision 255.
    error = refusal(damaged("JPGExtended.dcm", b"\xff\xc1", 4, 255))
    assert "exit status" in str(error)


def test_a_stream_of_another_size_than_the_header_says_is_refused() -> None:
    # gdcm would return a wrong picture or abort.
    for rows in (8, 3000):
        ds = stored("MR_small_jpeg_ls_lossless.dcm")
        ds.Rows = ds.Columns = rows
        refusal(ds)


def test_rle_that_makes_a_plug_in_panic_is_refused() -> None:
    # pylibjpeg-rle 2.2.0 raises a BaseException here.
    ds = stored("MR_small_RLE.dcm")
    ds.Rows = ds.Columns = 8
    refusal(ds)


def test_a_codec_that_takes_too_long_is_stopped() -> None:
    started = time.monotonic()
    error = refusal(stored("JPEG2000.dcm"), seconds=0.01)
    assert "TimeoutExpired" in str(error)
    assert time.monotonic() - started < 10


def test_the_child_sees_no_patient() -> None:
    ds = stored("JPEG2000.dcm")
    ds.PatientName = "Mustermann^Erika"
    sent = decoder._bare(ds)
    seen = {element.keyword for element in dcmread(BytesIO(sent))}
    assert seen <= {*decoder.DESCRIPTION, "SOPClassUID", "SOPInstanceUID"}
    assert b"Mustermann" not in sent


def test_the_preferred_plug_ins_are_installed() -> None:
    jpeg12.register()
    for syntax, plugin in decoder.PLUGINS.items():
        assert plugin in get_decoder(syntax).available_plugins


def test_an_unknown_transfer_syntax_is_refused() -> None:
    ds = stored("JPEG2000.dcm")
    ds.file_meta.TransferSyntaxUID = uids.UID("1.2.826.0.1.3680043.8.498.99")
    refusal(ds)
