"""The web part of the statement: what is asked of a DICOMweb server, and what its answers mean."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from itertools import groupby

from dicom_node import dicomweb, http_session
from dicom_node.conformance.markdown import bullets, section, table
from dicom_node.conformance.services import BEHAVIOURS, STORED

_REASONS = (
    (0xA700, "0xA700 to 0xA7FF", "Refused: out of resources"),
    (0xA900, "0xA900 to 0xA9FF", "Data set does not match SOP class"),
    (0xC000, "0xC000 to 0xCFFF but 0xC122", "Cannot understand"),
    (0xC122, "0xC122", "Referenced transfer syntax not supported"),
    (0x0110, "0x0110", "Processing failure"),
    (0x0122, "0x0122", "Referenced SOP class not supported"),
)


def services() -> str:
    """Return the specification of the user agent of Studies Service (PS3.18 10)."""
    return "\n\n".join(
        [
            section(3, "4.6 DICOMweb", _INTRODUCTION, bullets(_POINTS)),
            section(
                4,
                "4.6.1 STOW-RS, as user agent",
                "`POST {url}/studies`, one object a request, `multipart/related; "
                'type="application/dicom"`, byte for byte as it is kept; the response is asked '
                "for in `application/dicom+json`.",
                table(["Response", "Behaviour"], _responses()),
                table(["Failure Reason", "Meaning", "Behaviour"], _reasons()),
            ),
            section(
                4,
                "4.6.2 QIDO-RS, as user agent",
                'With `proof = "find"`: `GET {url}/studies/{study}/series/{series}/instances'
                "?SOPInstanceUID={instance}`; the object is there if an item of the answer has "
                "its SOP Instance UID. 204, 404 and 410 mean that it is not. `dicom-node doctor` "
                "and `dicom-node echo` search for a study that nobody has (`2.25.0`).",
            ),
        ]
    )


_INTRODUCTION = (
    'A peer with `protocol = "dicomweb"` gets its drafts by the Store transaction of the Studies '
    "Service (PS3.18 10.5) and is searched for them (PS3.18 10.6). No DICOMweb is served."
)
_POINTS = (
    "HTTP/1.1. Neither redirects nor proxies of the environment are followed.",
    "https: the certificate must name the host and be of an authority of the system or of "
    "`tls.authorities`, or of the peer's own `authorities` alone; the node's certificate is shown "
    "to a server that asks for one.",
    "Authentication: none, Basic (RFC 7617) or Bearer (RFC 6750).",
    f"Answers of up to {http_session.LONGEST_ANSWER} bytes.",
)


def _responses() -> Iterator[tuple[str, str]]:
    named = "that names the object in Referenced SOP Sequence"
    yield f"200, 202 {named}", f"{STORED} A Warning Reason is noted."
    yield "any with an item in Failed SOP Sequence", "See the Failure Reason."
    yield "200, 202 that names it in neither; other 2xx; 3xx", _behaviour(HTTPStatus.FOUND)
    for behaviour, group in groupby(range(HTTPStatus.BAD_REQUEST, 600), key=_behaviour):
        numbers = list(group)
        first, last = numbers[0], numbers[-1]
        yield str(first) if first == last else f"{first} to {last}", behaviour


def _behaviour(status: int) -> str:
    return BEHAVIOURS[dicomweb.kind_of_status(status)]


def _reasons() -> Iterator[tuple[str, str, str]]:
    yield "0x0111, 0xB00E", "It is there already", STORED
    for reason, shown, meaning in _REASONS:
        yield shown, meaning, BEHAVIOURS[dicomweb.kind_of_reason(reason)]
    yield "any other", "", BEHAVIOURS[dicomweb.kind_of_reason(0x0001)]
