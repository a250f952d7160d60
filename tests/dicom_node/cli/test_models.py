"""``dicom-node models``: what is needed is said, fetched, prepared, verified and traced."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dicom_node import cli
from inference.demo.dicom import to_dx
from inference.demo.phantom import render, scene
from inference.hub import LLAVA_RAD
from tests.inference.golden import GOLDEN, MISSING, Case
from tests.inference.hub_server import Hub, Repository, serving

REPOSITORY = Path(__file__).parents[3]
PUBLISHED = REPOSITORY / "inference" / "demo" / "weights"

Command = Callable[..., int]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """``models(*arguments, **settings)``: run a verb in an empty folder; its exit code."""

    def run(*arguments: object, **settings: str) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["dicom-node", "models", *map(str, arguments)])
        for name, value in settings.items():
            monkeypatch.setenv(f"DICOM_NODE_MODEL__{name}", value)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as ``models prepare`` leaves it, made by a process of its own."""
    output = tmp_path_factory.mktemp("prepared") / "demo"
    done = process("prepare", "--model", "demo", "--source", PUBLISHED, "--output", output)
    assert done.returncode == 0, done.stderr
    assert f"folder       {output}" in done.stdout
    assert f'[model] path = "{output}"' in done.stderr
    return output


def process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a verb as an administrator does; nothing that tests have set about the hub is left."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "dicom_node.cli", "models", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**ours, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def failure(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an expected failure."""
    *_, line = capsys.readouterr().err.splitlines()
    return str(line)


# --- list -------------------------------------------------------------------------------------


def test_list_names_models_weights_and_licences(
    models: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models("list") == 0
    said = capsys.readouterr().out
    for words in ("llava-rad", "cxr-llava", "demo", "lmsys/vicuna-7b-v1.5", "CC BY-NC 4.0"):
        assert words in said


def test_list_as_json_says_what_is_prepared(
    models: Command, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models("list", "--json", NAME="demo", PATH=str(prepared)) == 0
    found = document(capsys)
    assert found["configured"] == "demo"
    assert {"demo", "llava-rad", "cxr-llava"} <= set(found["models"])
    assert found["prepared"]["scheme"] == "nf4"
    assert len(found["prepared"]["digest"]) == 64
    needs = {one["name"]: one["needs"] for one in found["details"]}
    assert needs["demo"] == []
    assert [one["repo"] for one in needs["llava-rad"]] == [one.repo for one in LLAVA_RAD]


def test_list_says_when_the_configured_folder_holds_something_else(
    models: Command, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models("list", "--json", NAME="llava-rad", PATH=str(prepared)) == 0
    assert "was prepared for demo, not llava-rad" in document(capsys)["prepared"]["fault"]


# --- pull -------------------------------------------------------------------------------------

COMMIT = "0" * 32


@pytest.fixture
def served() -> Iterator[Hub]:
    """A hub that holds small files under the names of LLaVA-Rad's."""
    with serving() as running:
        for needed in LLAVA_RAD:
            names = [one[0].replace("*", "00001-of-00001") for one in needed.files]
            running.repositories[needed.repo] = Repository(
                commits=[((needed.revision or "") + COMMIT).ljust(40, "0")],
                files={name: name.encode() for name in names},
            )
        yield running


@pytest.fixture
def hub_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``pull`` sets for its own process alone is set back after the test."""
    for name in ("HF_HUB_OFFLINE", "HF_HUB_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "1")


@pytest.mark.usefixtures("hub_settings")
def test_pull_shows_the_terms_and_fetches_nothing_until_they_are_accepted(
    models: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "published"
    assert models("pull", "--model", "llava-rad", "--output", output) == 1
    said = capsys.readouterr()
    for needed in LLAVA_RAD:
        for words in (needed.page, needed.folder, needed.licence, needed.terms):
            assert words in said.out
    assert said.err.startswith("dicom-node: nothing was fetched: read these terms")
    assert said.err.count("\n") == 1
    assert not output.exists()


def test_pull_fetches_every_file_that_prepare_asks_for(served: Hub, tmp_path: Path) -> None:
    output = tmp_path / "published"
    done = process(
        "pull", "--model", "llava-rad", "--output", output, "--accept-licence",
        HF_ENDPOINT=served.url, HF_HOME=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((output / "llava-rad" / "PULLED.json").read_text())
    assert record["commit"] == "dcdbc6ca" + COMMIT
    assert f"models prepare --model llava-rad --source {output}" in done.stderr
    missing = process("prepare", "--model", "llava-rad", "--source", output, "--output", "x")
    assert "missing:" not in missing.stderr
    assert missing.returncode == 1  # for these are no weights
    assert missing.stderr.count("\n") == 1, missing.stderr


def test_a_hub_that_refuses_is_one_line(served: Hub, tmp_path: Path) -> None:
    served.repositories["lmsys/vicuna-7b-v1.5"].gated = True
    done = process(
        "pull", "--model", "llava-rad", "--output", tmp_path / "published", "--accept-licence",
        HF_ENDPOINT=served.url, HF_HOME=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 1
    assert "dicom-node: lmsys/vicuna-7b-v1.5: it is gated: accept its terms on" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_administrator_s_offline_setting_stays(served: Hub, tmp_path: Path) -> None:
    done = process(
        "pull", "--model", "llava-rad", "--output", tmp_path / "published", "--accept-licence",
        HF_ENDPOINT=served.url, HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert done.returncode == 1
    assert "pytorch_model-*.bin" in done.stdout  # what to copy by hand
    assert done.stderr.startswith("dicom-node: HF_HUB_OFFLINE is set")
    assert served.asked == []


@pytest.mark.usefixtures("hub_settings")
def test_of_the_demo_model_there_is_nothing_to_pull(
    models: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models("pull", "--model", "demo", "--output", "x") == 1
    assert "comes with dicom-node" in failure(capsys)


# --- prepare ----------------------------------------------------------------------------------


def test_prepare_names_each_missing_file_its_place_and_its_licence(
    models: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = models(
        "prepare", "--model", "cxr-llava", "--source", tmp_path, "--output", tmp_path / "out"
    )
    assert code == 1
    *missing, last = capsys.readouterr().err.splitlines()
    assert missing[0] == (
        f"missing: {tmp_path}/cxr-llava-v2/config.json, from "
        "https://huggingface.co/ECOFRI/CXR-LLAVA-v2 at b2224786, licence: CC BY-NC 4.0, "
        "and the Llama 2 Community License Agreement for its language model"
    )
    assert len(missing) == 5
    assert last.startswith("dicom-node: 5 files are missing: fetch them with `dicom-node models")
    assert not (tmp_path / "out").exists()


def test_prepare_does_not_touch_what_is_there(
    models: Command, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = models("prepare", "--model", "demo", "--source", PUBLISHED, "--output", prepared)
    assert code == 1
    assert str(prepared) in failure(capsys)


# --- verify -----------------------------------------------------------------------------------


def test_verify_passes_what_prepare_made(
    models: Command, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models("verify", "--json", NAME="demo", PATH=str(prepared), DEVICE="cpu") == 0
    found = document(capsys)
    assert found["model"] == "demo"
    assert all(one["passed"] for one in found["checks"])
    assert {"files", "layer 0", "engine"} <= {one["name"] for one in found["checks"]}


def test_verify_names_a_changed_file(
    models: Command, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(prepared, tmp_path / "copy")
    with (copy / "vocab.txt").open("r+b") as file:
        file.write(b"X")
    assert models("verify", "--model", "demo", "--path", copy, DEVICE="cpu") == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"dicom-node: {copy}/vocab.txt ")
    assert said.err.count("\n") == 1


# --- trace ------------------------------------------------------------------------------------


@pytest.fixture
def case() -> Case:
    if not GOLDEN.is_dir():
        pytest.skip(MISSING)
    return Case(GOLDEN / "llava-rad" / "case-s70")


def test_trace_writes_every_stage_of_an_image_and_a_text(
    models: Command, case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = next(one for one in case.samples if one["reason"])
    text = case.facts["retrieval"]["texts"][0]
    code = models(
        "trace", "--model", "llava-rad", "--source", case.folder / "llava-rad",
        "--base", case.folder / "vicuna-base",
        "--image", case.folder.parent / "images" / f"{sample['image']}.png",
        "--indication", sample["reason"], "--text", text, "--output", tmp_path / "out.safetensors",
    )  # fmt: skip
    assert code == 0
    said = document(capsys)
    for key in ("prompt", "input_ids", "generated_ids", "text"):
        assert said[key] == sample[key]
    found = load_file(tmp_path / "out.safetensors")
    stages = ("pixel_values", "vision_features", "projected_features")
    names = {stage: f"{stage}/{sample['image']}" for stage in stages}
    names["first_logits"] = f"first_logits/{sample['id']}"
    for stage, name in names.items():
        assert case.difference(name, found.pop(stage)) <= 1, stage
    retrieval = {key: case.arrays[f"retrieval/{key}"] for key in RETRIEVAL}
    image = case.facts["retrieval"]["images"].index(sample["image"])
    torch.testing.assert_close(
        found.pop("image_embedding"), retrieval["image_embeddings"][image], rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        found.pop("text_embedding"), retrieval["text_embeddings"][0], rtol=0, atol=1e-5
    )
    ids = retrieval["text_input_ids"][0]
    assert (
        found.pop("text_input_ids").tolist()[: int(ids.count_nonzero())] == ids[ids != 0].tolist()
    )
    assert found == {}


RETRIEVAL = ("image_embeddings", "text_embeddings", "text_input_ids")


def test_trace_knows_the_other_model_s_stages_and_that_it_places_no_texts(
    models: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not GOLDEN.is_dir():
        pytest.skip(MISSING)
    case = Case(GOLDEN / "cxr-llava" / "case-s64")
    image, output = case.images[0], tmp_path / "out.safetensors"
    arguments = (
        "trace", "--model", "cxr-llava", "--source", case.folder / "cxr-llava-v2",
        "--image", case.folder.parent / "images" / f"{image}.png", "--output", output,
    )  # fmt: skip
    assert models(*arguments) == 0
    assert document(capsys)["input_ids"][:2] == [1, 1]
    found = load_file(output)
    for stage in ("pixel_values", "vision_tokens", "projected"):
        assert case.difference(f"{stage}/{image}", found[stage]) <= 1, stage
    assert models(*arguments, "--text", "effusion") == 1
    assert "places no texts" in failure(capsys)


def test_trace_takes_a_dicom_file_the_way_the_node_does(
    models: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "phantom.dcm"
    to_dx(render(scene(3))).save_as(path)
    output = tmp_path / "out.safetensors"
    arguments = ("trace", "--model", "demo", "--source", PUBLISHED, "--output", output)
    assert models(*arguments, "--image", path, "--quantize", "nf4") == 0
    assert document(capsys)["text"]
    assert load_file(output)["pixel_values"].shape[0] == 3
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".trace-")] == []


@pytest.mark.parametrize(
    ("image", "line"),
    [
        pytest.param("nowhere.png", "no DICOM file and no picture", id="missing"),
        pytest.param("notes.txt", "no DICOM file and no picture", id="text"),
    ],
)
def test_trace_of_no_image_is_one_line(
    models: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], image: str, line: str
) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    code = models(
        "trace", "--model", "demo", "--source", PUBLISHED,
        "--image", tmp_path / image, "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 1
    assert line in failure(capsys)


def test_trace_into_a_folder_that_can_t_be_written_is_one_line(
    models: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "out"
    arguments = ("trace", "--model", "demo", "--source", PUBLISHED, "--output", output)
    assert models(*arguments, "--text", "effusion") == 1
    assert f"{output} can't be written" in failure(capsys)


def test_trace_of_nothing_is_wrong_usage(models: Command, tmp_path: Path) -> None:
    assert models("trace", "--model", "demo", "--source", tmp_path, "--output", "x") == 2


# --- demo -------------------------------------------------------------------------------------


def test_demo_says_what_it_is_and_copies_its_published_layout(
    models: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models("demo", "--output", tmp_path / "practice") == 0
    said = capsys.readouterr().out
    assert "phantoms and nothing else" in " ".join(said.split())
    assert str(PUBLISHED) in said
    assert (tmp_path / "practice" / "llava-rad" / "config.json").is_file()


def test_demo_overwrites_nothing(
    models: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models("demo", "--output", tmp_path) == 1
    assert "exists" in failure(capsys)
