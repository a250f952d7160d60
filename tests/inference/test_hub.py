"""What a site must bring is named, found and fetched; the hub is a server of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from inference import hub
from inference.hub import CXR_LLAVA, LLAVA_RAD, Needed
from tests.inference.hub_server import Hub, Repository, serving

REPOSITORY = Path(__file__).parents[2]
COMMIT = "dcdb" + "2" * 36
EARLIER = "1" * 40
NEEDED = Needed(
    repo="some/model",
    revision="dcdb",
    folder="model",
    files=(("config.json",), ("weights-*.bin", "weights-*.safetensors")),
    extras=("LICENSE*",),
    purpose="a test",
    licence="none",
    terms="none",
)
PUBLISHED = {
    "config.json": b"{}",
    "weights-1-of-2.bin": bytes(3000),
    "weights-2-of-2.bin": bytes(1000),
    "LICENSE": b"none",
    "remote_code.py": b"raise SystemExit",
}

# A process of its own, as the hub's client reads its settings once.
PULL = """
import sys
from pathlib import Path
from inference.findings import ModelUnavailable
from inference.hub import pull
from tests.inference.test_hub import NEEDED
try:
    pull([NEEDED], Path(sys.argv[1]), print)
except ModelUnavailable as error:
    sys.exit(f"refused: {error}")
"""

Pull = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def served() -> Iterator[Hub]:
    with serving() as running:
        running.repositories["some/model"] = Repository(
            commits=[EARLIER, COMMIT], files=dict(PUBLISHED)
        )
        yield running


@pytest.fixture
def pull(served: Hub, tmp_path: Path) -> Pull:
    """``pull(**environment)``: into ``tmp_path / "out"``."""

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        settings = {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "home")}
        return subprocess.run(
            [sys.executable, "-c", PULL, str(tmp_path / "out")],
            cwd=REPOSITORY,
            env={**os.environ, **settings, "HF_HUB_OFFLINE": "0", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stderr
    return done.stderr.splitlines()[-1]


# --- pull -------------------------------------------------------------------------------------


def test_pull_fetches_what_is_needed_and_no_more(pull: Pull, tmp_path: Path) -> None:
    done = pull()
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "model"
    fetched = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    del fetched[hub.RECORD]
    assert fetched == {k: v for k, v in PUBLISHED.items() if k != "remote_code.py"}


def test_the_commit_is_found_by_its_beginning_and_recorded(pull: Pull, tmp_path: Path) -> None:
    done = pull()
    assert f"some/model at {COMMIT}: 4 of 4 files to fetch" in done.stdout
    record = json.loads((tmp_path / "out" / "model" / hub.RECORD).read_text())
    assert record["repo"] == "some/model"
    assert record["commit"] == COMMIT
    assert record["files"]["weights-1-of-2.bin"] == 3000


def test_what_is_there_already_is_not_fetched_again(
    pull: Pull, served: Hub, tmp_path: Path
) -> None:
    pull()
    (tmp_path / "out" / "model" / "weights-2-of-2.bin").unlink()
    served.asked.clear()
    assert f"{COMMIT}: 1 of 4 files to fetch" in pull().stdout
    fetched = [one for one in served.asked if one.startswith("GET some/model/resolve")]
    assert fetched == [f"GET some/model/resolve/{COMMIT}/weights-2-of-2.bin"]


def test_a_file_that_was_spoilt_is_fetched_again(pull: Pull, tmp_path: Path) -> None:
    pull()
    spoilt = tmp_path / "out" / "model" / "weights-1-of-2.bin"
    spoilt.write_bytes(b"half")
    assert pull().returncode == 0
    assert spoilt.read_bytes() == PUBLISHED["weights-1-of-2.bin"]


def test_a_gated_repository_says_what_to_accept_and_where(pull: Pull, served: Hub) -> None:
    served.repositories["some/model"].gated = True
    assert last_line(pull()) == (
        "refused: some/model: it is gated: accept its terms on "
        "https://huggingface.co/some/model and set HF_TOKEN to a token of that account"
    )


def test_a_repository_that_is_gone_is_named(pull: Pull, served: Hub) -> None:
    served.repositories.clear()
    assert last_line(pull()).startswith("refused: some/model: the hub knows no such repository")


@pytest.mark.parametrize(
    ("commits", "found"),
    [
        pytest.param([EARLIER], "none of its 1 commits begins with dcdb", id="rewritten"),
        pytest.param([COMMIT, "dcdb" + "3" * 36], "2 of its 2 commits begins", id="ambiguous"),
    ],
)
def test_a_pinned_commit_must_be_the_only_one(
    pull: Pull, served: Hub, commits: list[str], found: str
) -> None:
    served.repositories["some/model"].commits = commits
    assert found in last_line(pull())


def test_a_repository_without_a_needed_file_is_refused_before_anything_is_fetched(
    pull: Pull, served: Hub, tmp_path: Path
) -> None:
    del served.repositories["some/model"].files["config.json"]
    assert last_line(pull()) == f"refused: some/model at {COMMIT} holds no config.json"
    assert not (tmp_path / "out").exists()


def test_offline_fetches_nothing_and_says_so(pull: Pull, served: Hub) -> None:
    assert last_line(pull(HF_HUB_OFFLINE="1")).startswith("refused: HF_HUB_OFFLINE is set")
    assert served.asked == []


def test_a_hub_that_goes_away_meanwhile_leaves_no_record(
    pull: Pull, served: Hub, tmp_path: Path
) -> None:
    served.cut = "weights-1-of-2.bin"
    assert last_line(pull()).startswith("refused: some/model: the hub can't be reached")
    assert not (tmp_path / "out" / "model" / hub.RECORD).exists()


@pytest.mark.parametrize("name", ["out", "out/model"])
def test_a_file_in_the_way_is_one_line(pull: Pull, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("a file where a folder belongs")
    assert "refused: " in last_line(pull())


def test_too_little_room_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    listing = hub.Listing(needed=NEEDED, commit=COMMIT, sizes={"config.json": 10**18})
    with pytest.raises(hub.ModelUnavailable, match=r"free and 1000000000\.00 GB are to be fetched"):
        hub._check_room([listing], tmp_path)


# --- what is there ----------------------------------------------------------------------------


def bring(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def missing(needs: tuple[Needed, ...], source: Path, base: Path | None = None) -> set[str]:
    return {f"{one.needed.repo}: {one.name}" for one in hub.missing(needs, source, base)}


def test_of_an_empty_folder_everything_is_missing(tmp_path: Path) -> None:
    assert missing((NEEDED,), tmp_path) == {"some/model: config.json", "some/model: weights-*.bin"}


def test_what_a_site_converted_does_as_well(tmp_path: Path) -> None:
    bring(tmp_path / "model", "config.json", "weights-1-of-1.safetensors")
    assert missing((NEEDED,), tmp_path) == set()


LLAVA_RAD_FILES = (
    "config.json", "adapter_config.json", "adapter_model.bin", "non_lora_trainables.bin",
    "biomedclipcxr_518.json", "biomedclipcxr_518_checkpoint.pt",
)  # fmt: skip
VICUNA_FILES = (
    "config.json", "tokenizer.model", "pytorch_model.bin.index.json",
    "pytorch_model-00001-of-00002.bin",
)  # fmt: skip
TEXT_TOWER = "BiomedNLP-BiomedBERT-base-uncased-abstract"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """LLaVA-Rad's files as somebody copied them to an offline site."""
    bring(tmp_path / "llava-rad", *LLAVA_RAD_FILES)
    bring(tmp_path / "llava-rad" / TEXT_TOWER, "config.json", "vocab.txt")
    bring(tmp_path / "vicuna-7b-v1.5", *VICUNA_FILES)
    return tmp_path


def test_a_copied_folder_is_complete(copied: Path) -> None:
    assert missing(LLAVA_RAD, copied) == set()


def test_the_base_may_have_another_name_or_place(copied: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (copied / "vicuna-7b-v1.5").rename(copied / "vicuna-base")
    assert missing(LLAVA_RAD, copied) == set()
    (copied / "vicuna-base").rename(elsewhere)
    assert missing(LLAVA_RAD, copied, elsewhere) == set()
    assert missing(LLAVA_RAD, copied / "llava-rad", elsewhere) == set()


def test_each_missing_file_is_named_with_its_repository(copied: Path) -> None:
    (copied / "llava-rad" / TEXT_TOWER / "vocab.txt").unlink()
    (copied / "vicuna-7b-v1.5" / "pytorch_model-00001-of-00002.bin").unlink()
    assert missing(LLAVA_RAD, copied) == {
        f"microsoft/{TEXT_TOWER}: vocab.txt",
        "lmsys/vicuna-7b-v1.5: pytorch_model-*.bin",
    }


@pytest.mark.parametrize("needed", [*LLAVA_RAD, *CXR_LLAVA], ids=lambda needed: needed.repo)
def test_no_remote_code_is_ever_fetched(needed: Needed) -> None:
    assert not any(fnmatch("CXR_LLAVA_HF.py", pattern) for pattern in needed.wanted)


@pytest.mark.parametrize("needed", [*LLAVA_RAD, *CXR_LLAVA], ids=lambda needed: needed.repo)
def test_the_manual_names_repository_revision_folder_and_files(needed: Needed) -> None:
    manual = (REPOSITORY / "docs" / "models.md").read_text()
    (row,) = (line for line in manual.splitlines() if line.startswith(f"| `{needed.repo}`"))
    for words in (needed.revision or "newest", f"`{needed.folder}/`"):
        assert words in row
    assert [names[0] for names in needed.files if f"`{names[0]}`" not in row] == []


@pytest.mark.parametrize(
    ("needs", "case"),
    [
        pytest.param(LLAVA_RAD, "llava-rad/case-s70", id="llava-rad"),
        pytest.param(CXR_LLAVA, "cxr-llava/case-s64", id="cxr-llava"),
    ],
)
def test_the_golden_checkpoints_lack_nothing(needs: tuple[Needed, ...], case: str) -> None:
    folder = REPOSITORY.parent / "shared" / "golden" / case
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    assert missing(needs, folder) == set()
