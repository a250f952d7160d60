"""The Conformance Statement says what the program does, and the one in docs/ is of this version."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import UID

from dicom_node import cli, scp
from dicom_node.commitment_information import PUSH_MODEL
from dicom_node.config import Peer, Service, Settings, Tls
from dicom_node.conformance import markdown, statement
from dicom_node.conformance.created import Attribute, CreatedObject, created
from dicom_node.conformance.samples import samples
from dicom_node.conformance.site import SECTIONS
from dicom_node.errors import CannotUnderstand, NotAuthorised, OutOfResources, WrongSopClass
from dicom_node.results import objects
from tests.dicom_node.results import samples as other_samples
from worker import records

ROOT = Path(__file__).parents[2]
COMMAND = "dicom-node conformance --output docs/conformance.md"


@pytest.fixture(scope="module")
def text() -> str:
    return statement(Settings(), records.classes)


@pytest.fixture(scope="module")
def made() -> dict[str, CreatedObject]:
    settings = Settings()
    found = created(samples(settings), settings.results, records.classes)
    return {one.kind: one for one in found}


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    _, _, below = text.partition(f" {heading}\n")
    assert below, f"no heading {heading}"
    lines = below.splitlines()
    begin = next(at for at, line in enumerate(lines) if line.startswith("| ---"))
    table = [line[2:-2].split(" | ") for line in lines[begin + 1 :] if line.startswith("|")]
    end = next(at for at, line in enumerate([*lines[begin + 1 :], ""]) if not line)
    return table[:end]


def attribute(of: CreatedObject, name: str) -> Attribute:
    found = [one for module in of.modules for one in module.attributes if one.name == name]
    assert len(found) == 1, f"{name} is there {len(found)} times"
    return found[0]


def test_the_statement_in_docs_is_that_of_this_version(text: str) -> None:
    kept = (ROOT / "docs" / "conformance.md").read_text("utf-8")
    assert kept == text, f"docs/conformance.md is not up to date: run `{COMMAND}` without settings"


def test_another_machine_and_time_zone_make_the_same_statement(text: str, tmp_path: Path) -> None:
    code = (
        "import sys; from dicom_node.config import Settings; from worker import records;"
        "from dicom_node.conformance import statement;"
        "sys.stdout.write(statement(Settings(), records.classes))"
    )
    elsewhere = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7", "LC_ALL": "C.UTF-8"}
    elsewhere["PYTHONPATH"] = str(ROOT)
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=elsewhere, capture_output=True, check=True
    )
    assert ended.stdout.decode() == text


def test_nothing_of_the_samples_is_told(text: str) -> None:
    assert "SAMPLE" not in text


def test_each_transfer_syntax_stands_in_our_order_of_preference(text: str) -> None:
    listed = [row[-1] for row in rows(text, "4.4.2 Presentation contexts")]
    assert listed == [str(uid) for uid in scp.TRANSFER_SYNTAXES]


def test_what_is_listed_as_stored_is_stored(text: str) -> None:
    listed = [row[1] for row in rows(text, "4.1 SOP classes") if row[2].endswith("SCP")]
    other = {"1.2.840.10008.1.1", PUSH_MODEL}
    refused = [uid for uid in listed if uid not in other and not scp._is_storage(UID(uid))]
    assert len(listed) > 100
    assert refused == []


def test_each_status_that_an_error_becomes_is_listed(text: str) -> None:
    codes = {row[1] for row in rows(text, "4.5.1 C-STORE, as SCP")}
    known = (OutOfResources, WrongSopClass, CannotUnderstand, NotAuthorised)
    assert codes == {"0x0000", "0x0110", *(f"0x{one.dimse_status:04X}" for one in known)}


@pytest.mark.parametrize(
    ("status", "behaviour"),
    [
        pytest.param("0x0000", "Counts as stored", id="success"),
        pytest.param("0x0111", "Counts as stored", id="duplicate"),
        pytest.param("0x0122", "The next form", id="not-supported"),
        pytest.param("0xA700 to 0xA7FF", "Sent again later", id="resources"),
        pytest.param("0xC000 to 0xCFFF", "Failed for good", id="cannot-understand"),
        pytest.param("any other", "Sent again later", id="other"),
    ],
)
def test_what_we_make_of_a_peers_status_is_told(text: str, status: str, behaviour: str) -> None:
    told = {row[1]: row[-1] for row in rows(text, "4.5.2 C-STORE, as SCU")}
    assert told[status].startswith(behaviour)


@pytest.mark.parametrize(
    ("answer", "behaviour"),
    [
        pytest.param("200, 202 that names the object", "Counts as stored", id="success"),
        pytest.param("400", "Failed for good", id="bad-request"),
        pytest.param("415", "The next form", id="not-supported"),
        pytest.param("500 to 599", "Sent again later", id="server"),
    ],
)
def test_what_we_make_of_a_dicomweb_servers_answer_is_told(
    text: str, answer: str, behaviour: str
) -> None:
    told = {row[0]: row[1] for row in rows(text, "4.6.1 STOW-RS, as user agent")}
    (found,) = [made for said, made in told.items() if said.startswith(answer)]
    assert found.startswith(behaviour)


def test_each_way_to_be_turned_away_is_told_with_its_codes(text: str) -> None:
    table = rows(text, "4.4.1 Who is let in")
    answers = [tuple(cell[:1] for cell in row[1:]) for row in table]
    assert answers == [
        ("1", "1", "7"),
        *[("1", "1", "3")] * 3,
        *[("2", "3", "2")] * 3,
        ("1", "1", "2"),
    ]


def test_a_sites_own_settings_are_told() -> None:
    peer = Peer(name="pacs", ae_title="PACS", host=("10.0.0.5",), port=11119, proof="find")
    settings = Settings(peers=(peer,))
    node = settings.node.model_copy(update={"ae_title": "CHEST", "port": 4242})
    told = statement(settings.model_copy(update={"node": node}), records.classes)
    assert rows(told, "6.1 AE title and presentation address")[0][1:4] == [
        "CHEST",
        "0.0.0.0",
        "4242",
    ]
    assert rows(told, "6.2 Peers")[0][:4] == ["pacs", "PACS", "10.0.0.5", "11119"]
    assert ["node.port", "a number, at least 1, at most 65535", "11112", "4242"] in rows(
        told, "[node]"
    )


def test_no_secret_is_told() -> None:
    secret = "-----BEGIN PRIVATE KEY-----"
    settings = Settings(
        database=Service(url="postgresql://node:hunter2@db/node"),
        tls=Tls(port=2762, certificate="a.pem", private_key=secret, authorities="b.pem"),
    )
    told = statement(settings, records.classes)
    assert "hunter2" not in told
    assert secret not in told


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_that_peers_may_notice_is_listed(text: str, section: str) -> None:
    listed = [row[0] for row in rows(text, f"[{section}]")]
    assert listed == [f"{section}.{key}" for key in type(getattr(Settings(), section)).model_fields]


# -- created objects -------------------------------------------------------------------------------


def test_every_attribute_that_another_record_gives_is_listed(
    made: dict[str, CreatedObject],
) -> None:
    for kind, one in made.items():
        listed = {row.tag for module in one.modules for row in module.attributes}
        for record in (other_samples.record(), other_samples.second_record()):
            ds = dcmread(BytesIO(objects.encode(replace(record, kind=kind)).file))
            assert {str(tag) for tag in list(ds.keys())} <= listed


def test_every_content_item_that_another_record_gives_is_listed(
    made: dict[str, CreatedObject],
) -> None:
    record = other_samples.record(labels=other_samples.LABELS, labeler=other_samples.LABELER)
    for kind in ("text_sr", "coded_sr"):
        ds = dcmread(BytesIO(objects.encode(replace(record, kind=kind)).file))
        listed = {item.concept for item in made[kind].content}
        assert concepts([ds]) <= listed


def concepts(items: Sequence[object]) -> set[str]:
    found: set[str] = set()
    for item in items:
        for code in getattr(item, "ConceptNameCodeSequence", ()):
            found.add(f'({code.CodeValue}, {code.CodingSchemeDesignator}, "{code.CodeMeaning}")')
        found |= concepts(getattr(item, "ContentSequence", ()))
    return found


def test_every_attribute_belongs_to_a_module_of_its_iod(made: dict[str, CreatedObject]) -> None:
    homeless = [
        f"{kind}: {row.name}"
        for kind, one in made.items()
        for module in one.modules
        if not module.key
        for row in module.attributes
    ]
    assert homeless == []


def test_a_mandatory_attribute_always_has_a_value(made: dict[str, CreatedObject]) -> None:
    wrong = [
        f"{kind}: {row.name}"
        for kind, one in made.items()
        for module in one.modules
        if module.usage == "M"
        for row in module.attributes
        if (row.type, row.presence == "ALWAYS") == ("1", False)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "presence", "source", "value"),
    [
        pytest.param("Preliminary Flag", "ALWAYS", "FIXED", "PRELIMINARY", id="fixed"),
        pytest.param("Patient's Name", "VNAP", "IMAGE", "", id="image"),
        pytest.param("Study Description", "ANAP", "IMAGE", "", id="image-if-present"),
        pytest.param("Series Number", "ALWAYS", "CONFIG", "9901", id="configuration"),
        pytest.param("Software Versions", "ALWAYS", "AUTO", "", id="made-here"),
        pytest.param(">Institution Code Sequence", "EMPTY", "", "", id="empty"),
        pytest.param(">Template Identifier", "ALWAYS", "FIXED", "2000", id="nested"),
    ],
)
def test_presence_and_source_of_an_attribute_are_found_out(
    made: dict[str, CreatedObject], name: str, presence: str, source: str, value: str
) -> None:
    found = attribute(made["text_sr"], name)
    assert (found.presence, found.source, found.value) == (presence, source, value)


def test_a_peer_may_get_each_sop_class_that_the_worker_offers(
    made: dict[str, CreatedObject],
) -> None:
    results = Settings().results
    for kind in ("text_sr", "coded_sr"):
        assert made[kind].sop_class_uids == records.classes(kind, results)
    assert set(made) == {"text_sr", "coded_sr", "pdf", "capture", "gsps"}


# -- the command -----------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["dicom-node", "conformance", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_writes_the_statement_to_a_file(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, tmp_path, "--output", "c.md") == 0
    assert (tmp_path / "c.md").read_text("utf-8") == text


def test_a_file_that_cant_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, "--output", "nowhere/c.md") == 1
    assert capsys.readouterr().err == "dicom-node: nowhere/c.md: No such file or directory\n"


def test_a_bar_in_a_value_does_not_end_its_cell() -> None:
    assert markdown.table(["a"], [["x|y"]]).endswith("| x\\|y |")
