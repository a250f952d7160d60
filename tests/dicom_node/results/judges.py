"""Other people's judges of our objects: how each is run, what it may say, and why that is no fault.

A judge's verdict is what it made of the object and what it complains of. ``unexplained`` leaves the
complaints that no reason here covers; a tool that is missing fails the test in CI, elsewhere it
skips it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import highdicom
import pydicom
import pytest
import xmlschema

PACKAGES = {  # Debian's
    **dict.fromkeys(("dciodvfy", "dcsrdump"), "dicom3tools"),
    **dict.fromkeys(("dsrdump", "dsr2html", "dsr2xml", "dcmpschk"), "dcmtk"),
    "java": "default-jre-headless",
    "/usr/share/dcmtk/dsr2xml.xsd": "dcmtk",
    "/usr/share/java/pixelmed.jar": "libpixelmed-java",
    "/usr/share/java/bsh.jar": "libbsh-java",
}
_SCHEMA, _PIXELMED, _BEANSHELL = [name for name in PACKAGES if name.startswith("/")]
# PixelMed's main takes one file and compiles 6 MB of templates for it: 8 s each. So, 1 s each:
_DRIVER = """
validator = new com.pixelmed.validate.DicomSRValidator();
for (file : bsh.args) { print("FILE " + file); print(validator.validate(file)); }
"""
_XPATH_LIMITS = ("xpathTotalOpLimit", "xpathExprOpLimit", "xpathExprGrpLimit")

#: What a judge may say of any object, by judge: pattern -> why it is no fault of ours.
EXPLAINED: dict[str, dict[str, str]] = {
    "dciodvfy": {
        r"Warning - </ContributingEquipmentSequence\(0018,a001\)\[\d\]/DeviceUID\(0018,1002\)> - "
        r"Attribute is not present in standard DICOM IOD": (
            "PS3.3 C.12.1 has it there; this build of dicom3tools is of 2022"
        ),
        r"Warning - .*/CodingSchemeDesignator\(0008,0102\)\[1\]> - Unrecognized defined term = "
        r"<99DCMNODE>": "our private scheme, declared in the Coding Scheme Identification Sequence",
        r"Warning - </CodingSchemeIdentificationSequence\(0008,0110\)\[\d\]/CodingSchemeUID"
        r"\(0008,010c\)\[1\]> - Unrecognized defined term = <2\.25\.\d+>": "our scheme's UID",
    },
    "dsrdump": {
        r"W: The VR checker does not support this Specific Character Set: ISO_IR 192": (
            "it says that it left values unchecked"
        ),
    },
    "PixelMed": {
        # Its copy of CID 7001 is of 2005 and knows the DCM headings only, not LOINC's: it neither
        # finds such a section nor what is in it. The legacy headings are judged without this.
        r"Warning: [\d.]+: /CONTAINER \(18748-4,LN,[^/]*\)"
        r"/CONTAINER \((55112-7|55115-0|59776-5|19005-8|55111-9),LN,.*"
        r": Content Item not in template": "its section headings are those of 2005",
        r"Error: Template 1500 .*\(121058,DCM,\"Procedure reported\"\): Code .* not found in "
        r"context group 100": "CID 100 is extensible; the build misspells that flag",
        r"Warning: [\d.]+: /CONTAINER \(126000,DCM,[^/]*\)/CONTAINER \(126010,DCM,[^/]*\)"
        r"/CONTAINER \(125007,DCM,[^/]*\)/CODE \([^/]*\): Content Item not in template": (
            "its TID 1501 is older than the row of qualitative evaluations"
        ),
    },
}
EXPLAINED["dsr2html"] = EXPLAINED["dsr2xml"] = EXPLAINED["dsrdump"]

# Copied as they came, for they are the patient's and the order's identity.
_IDENTITY = (
    "PatientName|PatientID|IssuerOfPatientID|AccessionNumber|ReferringPhysicianName|StudyID|"
    "StudyDescription"
)
#: What else they may say of an object whose source's header was already wrong or poor.
EXPLAINED_IN_SOURCE: dict[str, dict[str, str]] = {
    "dciodvfy": {
        rf"(Error|Warning) - <.*/({_IDENTITY})\(.*> - Value (invalid|dubious) for this VR": (
            "wrong in the source, and never rewritten"
        ),
        r"Warning - </(StudyID|StudyDate|StudyTime|PatientID)\(.*> - Missing attribute or value "
        r"that would be needed to build DICOMDIR": "Type 2, empty in the source",
        r"Warning - .*/CodingSchemeDesignator\(0008,0102\)\[1\]> - Unrecognized defined term = "
        r"<99LOCAL>": "the site's private scheme",
        r"Warning - </(Performed)?ProcedureCodeSequence\(.*/CodingSchemeDesignator\(0008,0102\)"
        r"\[1\]> - CodingSchemeDesignator is deprecated = <SRT>": "the source's procedure code",
    },
    "dsrdump": {
        r"W: The VR checker does not support this Specific Character Set: .*": (
            "it says that it left values unchecked"
        ),
        r"W: Reading unknown/unsupported SpecificCharacterSet \(\\ISO 2022 IR (87|149|58)\)": (
            "it wants ISO 2022 IR 6 where PS3.3 C.12.1.1.2 allows an empty first value"
        ),
        r"W: PatientName \(0010,0010\) contains invalid character\(s\) in PatientModule": (
            "wrong in the source, and never rewritten"
        ),
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judge made of one object."""

    status: int
    shown: str
    complaints: tuple[str, ...]


def require(*tools: str) -> None:
    """Fail in CI, and skip elsewhere, where one of ``PACKAGES`` is not installed."""
    packages = {PACKAGES[tool] for tool in tools if not shutil.which(tool) and not _is_file(tool)}
    if packages:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say(f"not installed: apt-get install {' '.join(sorted(packages))}")


def _is_file(tool: str) -> bool:
    return tool.startswith("/") and Path(tool).is_file()


def unexplained(judge: str, verdict: Verdict, *, odd_source: bool = False) -> list[str]:
    """Return the complaints that have no known reason."""
    known = reasons(judge, odd_source=odd_source)
    return [line for line in verdict.complaints if not any(re.match(p, line) for p in known)]


def reasons(judge: str, *, odd_source: bool = False) -> Mapping[str, str]:
    """Return what the judge may say, with the reason of each."""
    more = EXPLAINED_IN_SOURCE.get(judge, {}) if odd_source else {}
    return EXPLAINED.get(judge, {}) | more


# --- dicom3tools ---------------------------------------------------------------------------------


def dciodvfy(file: Path) -> Verdict:
    """Judge attributes against the IOD; shows the IOD's name."""
    require("dciodvfy")
    done = _run("dciodvfy", "-new", file)
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    complaints = [line for line in lines if re.match("Error|Warning", line)]
    return Verdict(
        status=done.returncode,
        shown="\n".join(line for line in lines if line not in complaints),
        complaints=tuple(complaints),
    )


def dcsrdump(file: Path) -> Verdict:
    """Show the content tree; what is no item with a name and a type is a complaint."""
    require("dcsrdump")
    done = _run("dcsrdump", file)
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    tree = [line for line in lines if re.match(r'\t*>*[A-Z ]*: [A-Z]+: \([^,]+,[^,]+,"', line)]
    complaints = tuple(line for line in lines if line not in tree)
    return Verdict(status=done.returncode, shown="\n".join(tree), complaints=complaints)


# --- DCMTK ---------------------------------------------------------------------------------------


def dsrdump(file: Path) -> Verdict:
    """Show header and content tree as text."""
    return _dcmtk("dsrdump", "+Pl", file)


def dsr2html(file: Path) -> Verdict:
    """Show the page that dcm4chee's and Horos' users know."""
    return _dcmtk("dsr2html", file)


def dsr2xml(file: Path) -> Verdict:
    """Show the document as XML; complains where that breaks DCMTK's schema."""
    require(_SCHEMA)
    verdict = _dcmtk("dsr2xml", "+Xs", "+Xn", file)
    broken = _schema().iter_errors(verdict.shown.encode()) if verdict.shown else ()
    complaints = (*verdict.complaints, *(f"{error.path}: {error.reason}" for error in broken))
    return Verdict(status=verdict.status, shown=verdict.shown, complaints=complaints)


def dcmpschk(file: Path) -> Verdict:
    """Judge a presentation state; shows whether it passed."""
    require("dcmpschk")
    done = _run("dcmpschk", file)
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    shown = [line for line in lines if re.match(r"I: |W: Testing: |W: Test (passed|failed)", line)]
    complaints = tuple(line for line in lines if line not in shown)
    return Verdict(status=done.returncode, shown="\n".join(shown), complaints=complaints)


def _dcmtk(tool: str, *arguments: str | Path) -> Verdict:
    require(tool)
    done = _run(tool, *arguments)
    return Verdict(
        status=done.returncode, shown=done.stdout, complaints=tuple(done.stderr.splitlines())
    )


@cache
def _schema() -> xmlschema.XMLSchema:
    return xmlschema.XMLSchema(_SCHEMA)


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        errors="replace",
        encoding="utf-8",
        timeout=300,
        check=False,
    )


# --- PixelMed ------------------------------------------------------------------------------------


def pixelmed(files: Sequence[Path], driver: Path) -> dict[Path, Verdict]:
    """Judge content trees against their templates, all in one virtual machine.

    ``driver`` is a file that may be written.
    """
    require("java", _PIXELMED, _BEANSHELL)
    driver.write_text(_DRIVER, "utf-8")
    limits = [f"-Djdk.xml.{limit}=0" for limit in _XPATH_LIMITS]  # the templates exceed Java's
    # Quick to compile beats quick to run here: 12 s instead of 18 s for six documents.
    flags = ["-Djava.awt.headless=true", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    path = f"{_PIXELMED}:{_BEANSHELL}"
    done = _run("java", *limits, *flags, "-cp", path, "bsh.Interpreter", driver, *files)
    assert done.returncode == 0, done.stderr
    told = done.stdout.split("FILE ")[1:]
    return {Path(name): _judgement(lines) for name, *lines in map(str.splitlines, told)}


def _judgement(lines: Iterable[str]) -> Verdict:
    shown = [line for line in lines if re.match(r"Found |.* [Cc]omplete$", line)]
    complaints = [line for line in lines if line.strip() and line not in shown]
    ended = "IOD validation complete" in shown and "Root Template Validation Complete" in shown
    return Verdict(status=0 if ended else 1, shown="\n".join(shown), complaints=tuple(complaints))


# --- Python --------------------------------------------------------------------------------------


def highdicom_reads(file: Path) -> Verdict:
    """Read as a document of highdicom's; shows the class."""
    return _tried(lambda: type(highdicom.sr.srread(str(file))).__name__)


def pydicom_reads(file: Path) -> Verdict:
    """Read every value, refusing each that its VR does not allow; shows the SOP class."""

    def read() -> str:
        ds = pydicom.dcmread(file)
        ds.walk(lambda _, element: element.value)
        return str(ds.file_meta.MediaStorageSOPClassUID.name)

    settings = pydicom.config.settings
    before = settings.reading_validation_mode
    settings.reading_validation_mode = pydicom.config.RAISE
    try:
        return _tried(read)
    finally:
        settings.reading_validation_mode = before


def _tried(read: Callable[[], str]) -> Verdict:
    try:
        return Verdict(status=0, shown=read(), complaints=())
    except Exception as error:  # whatever a judge stumbles over is its complaint
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        return Verdict(status=1, shown="", complaints=(told,))
