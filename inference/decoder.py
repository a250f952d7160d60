"""Stored PixelData to numbers, in a process of its own where a codec could take the worker along.

Measured with 300 damaged streams for each codec (python-gdcm 3.2.6, pyjpegls 1.5.1, pylibjpeg-rle
2.2.0): gdcm kills its process (SIGSEGV, SIGABRT) on JPEG and on JPEG-LS, pyjpegls may never come
back, pylibjpeg-rle raises what no ``except Exception`` catches. The worker holds a loaded model,
so what is not plain numpy or Python runs in a child with a limit on time and memory; the child
sees the pixels and how they are coded, nothing else of the header.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom import uid as uids
from pydicom.dataset import FileMetaDataset

from inference import headers, jpeg12
from inference.findings import UnreadablePixels

CHILD_BYTES = 4 * 2**30  # address space; 64 Mpx of 16 bits take 0.13 GB, some times over

#: Where several plug-ins know a syntax: the one that did best on damaged streams. gdcm takes a
#: JPEG-LS stream of another size than the header says and returns a wrong picture.
PLUGINS = {
    uids.RLELossless: "pydicom",
    uids.JPEGBaseline8Bit: "pillow",
    uids.JPEGLSLossless: "pyjpegls",
    uids.JPEGLSNearLossless: "pyjpegls",
    uids.JPEG2000Lossless: "pylibjpeg",
    uids.JPEG2000: "pylibjpeg",
}
#: Decoded by numpy and pydicom alone, whose worst is an exception.
HARMLESS = (
    uids.ImplicitVRLittleEndian,
    uids.ExplicitVRLittleEndian,
    uids.ExplicitVRBigEndian,
    uids.DeflatedExplicitVRLittleEndian,
    uids.RLELossless,
)
#: What decoding needs (PS3.3 C.7.6.3).
DESCRIPTION = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"),
)


def decode(ds: Dataset, *, seconds: float) -> npt.NDArray[Any]:
    """Decode PixelData: -> (H, W) or (H, W, samples) stored values.

    ``seconds``: how long a codec may take. Raises UnreadablePixels UNDECODABLE.
    """
    syntax = headers.text(ds.file_meta, "TransferSyntaxUID")
    try:
        if syntax in HARMLESS:
            return _pixel_array(ds)
        return _in_child(_bare(ds), seconds)
    except subprocess.CalledProcessError as error:  # negative: the signal that killed it
        why = f"exit status {error.returncode}"
        raise UnreadablePixels("UNDECODABLE", f"transfer syntax {syntax}: {why}") from error
    except (*headers.PYDICOM_ERRORS, subprocess.TimeoutExpired) as error:
        # The error's own words may repeat a value of the header; its kind can't.
        why = type(error).__name__
        raise UnreadablePixels("UNDECODABLE", f"transfer syntax {syntax}: {why}") from error


def _pixel_array(ds: Dataset) -> npt.NDArray[Any]:
    jpeg12.register()
    ds.pixel_array_options(decoding_plugin=PLUGINS.get(ds.file_meta.TransferSyntaxUID, ""))
    return ds.pixel_array


def _bare(ds: Dataset) -> bytes:
    """Write the pixels and their description, without the patient, as a Part 10 file."""
    bare = Dataset()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = ds.file_meta.TransferSyntaxUID
    for keyword in DESCRIPTION:
        if keyword in ds:
            bare[keyword] = ds[keyword]
    bare.SOPClassUID, bare.SOPInstanceUID = uids.SecondaryCaptureImageStorage, "2.25.1"
    buffer = BytesIO()
    bare.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _in_child(part10: bytes, seconds: float) -> npt.NDArray[Any]:
    child = subprocess.run(
        [sys.executable, "-m", "inference.decoder"],
        input=part10,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the codecs' own words, printed past Python
        # The parent's modules but none of its secrets; each BLAS thread would reserve memory.
        env={"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
        timeout=seconds,
        check=True,
    )
    array: npt.NDArray[Any] = np.load(BytesIO(child.stdout), allow_pickle=False)
    return array


def main() -> None:
    """Be the child: a Part 10 file on stdin, the array in npy format on stdout."""
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_BYTES, CHILD_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the picture
    array = BytesIO()
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a codec prints must not get into the answer
    with headers.tolerant(), answer:
        np.save(array, _pixel_array(dcmread(BytesIO(sys.stdin.buffer.read()))))
        answer.write(array.getbuffer())


if __name__ == "__main__":
    main()
