"""A recipe becomes a folder, whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import weakref
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from inference.findings import ModelUnavailable
from inference.weights import nf4
from inference.weights.artefact import Artefact, Manifest
from inference.weights.prepare import prepare
from inference.weights.recipe import Part, Recipe
from tests.inference.weights import parts

STATE = {
    f"{parts.PACKED}{ending}"
    for ending in (
        "",
        ".absmax",
        ".quant_map",
        ".nested_absmax",
        ".nested_quant_map",
        ".quant_state.bitsandbytes__nf4",
    )
}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "prepared"


def opened(folder: Path) -> dict[str, Tensor]:
    """All tensors, as safetensors' own reader sees them."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_without_quantisation_all_is_written_as_float32(tmp_path: Path, output: Path) -> None:
    halves = {name: tensor.half() for name, tensor in parts.tensors().items()}
    prepare(parts.recipe(tmp_path, halves), output, quantisation="none")
    found = opened(output)
    assert found.keys() == halves.keys()
    for name, tensor in halves.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor.float()), name


def test_with_nf4_the_packed_parts_are_packed_and_the_rest_is_float16(
    tmp_path: Path, output: Path
) -> None:
    prepare(parts.recipe(tmp_path), output)
    found, plain = opened(output), parts.tensors()
    assert found.keys() == (plain.keys() - {parts.PACKED}) | STATE
    for name in plain.keys() - {parts.PACKED}:
        assert torch.equal(found[name], plain[name].half()), name
    for ending, tensor in nf4.pack(plain[parts.PACKED].half()).items():
        assert torch.equal(found[parts.PACKED + ending], tensor), ending


def test_every_tensor_begins_at_a_multiple_of_its_element(tmp_path: Path, output: Path) -> None:
    prepare(parts.recipe(tmp_path), output)
    entries = Artefact.open(output, model=parts.MODEL).entries
    assert all(entry.start % entry.dtype.itemsize == 0 for entry in entries.values())


def test_few_tensors_are_held_at_a_time(tmp_path: Path, output: Path) -> None:
    references: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def read() -> Tensor:
        alive.append(sum(reference() is not None for reference in references))
        tensor = torch.zeros(64)
        references.append(weakref.ref(tensor))
        return tensor

    many = [Part(name=str(number), shape=(64,), read=read) for number in range(8)]
    recipe = dataclasses.replace(parts.recipe(tmp_path), parts=many)
    prepare(recipe, output, quantisation="none")
    assert max(alive) <= 1


def test_the_manifest_says_what_was_made_of_what(tmp_path: Path, output: Path) -> None:
    made = prepare(parts.recipe(tmp_path), output)
    assert Manifest.read(output) == made.model_copy(
        update={"config": made.config | {"sizes": [1, 2]}}
    )
    assert made.model == parts.MODEL
    assert made.scheme == "nf4"
    assert made.versions["torch"] == torch.__version__
    assert made.versions["bitsandbytes"] == metadata.version("bitsandbytes")
    assert made.sources["tiny/source.bin"].sha256 == hashlib.sha256(b"published").hexdigest()
    assert made.licence == "research only"
    for name in ("model.safetensors", "vocab.txt"):
        content = (output / name).read_bytes()
        assert made.files[name].sha256 == hashlib.sha256(content).hexdigest()
    assert {path.name for path in output.iterdir()} == {*made.files, "manifest.json"}


def test_the_digest_follows_numbers_and_constants_only(tmp_path: Path) -> None:
    recipe = parts.recipe(tmp_path)
    other = {name: tensor + 1 for name, tensor in parts.tensors().items()}
    digests = [
        prepare(one, tmp_path / str(number), quantisation="none").digest
        for number, one in enumerate(
            [
                recipe,
                recipe,
                parts.recipe(tmp_path, other),
                dataclasses.replace(recipe, config={"eps": 1e-6}),
            ]
        )
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_progress_rises_to_the_end(tmp_path: Path, output: Path) -> None:
    steps: list[tuple[str, float]] = []
    prepare(parts.recipe(tmp_path), output, progress=lambda *step: steps.append(step))
    shares = [share for _, share in steps]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert steps[0][0] == "hashing tiny/source.bin"
    assert [name for name, _ in steps[1:]] == list(parts.tensors())


# --- whole or not at all ----------------------------------------------------------------------


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"words.txt", "source.bin"}


def broken(folder: Path, error: BaseException) -> Recipe:
    """Its second tensor can't be read."""
    recipe = parts.recipe(folder)

    def fail() -> Tensor:
        raise error

    bad = Part(name="bad", shape=(1,), read=fail)
    return dataclasses.replace(recipe, parts=[recipe.parts[0], bad])


@pytest.mark.parametrize("error", [ModelUnavailable("damaged"), KeyboardInterrupt()])
def test_a_run_that_fails_leaves_nothing(
    tmp_path: Path, output: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        prepare(broken(tmp_path, error), output)
    assert left(tmp_path) == set()


def test_a_full_disc_is_said_and_leaves_nothing(tmp_path: Path, output: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(ModelUnavailable, match="No space left on device: free some room"):
        prepare(broken(tmp_path, full), output)
    assert left(tmp_path) == set()


KILLED = """
import sys
from pathlib import Path
from tests.inference.weights.test_prepare import killed
killed(Path(sys.argv[1]))
"""


def killed(folder: Path) -> None:
    """Run in a process of its own: dies in the middle of the second tensor."""
    recipe = parts.recipe(folder)

    def die() -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1)

    last = Part(name="last", shape=(1,), read=die)
    dying = dataclasses.replace(recipe, parts=[*recipe.parts, last])
    prepare(dying, folder / "prepared", quantisation="none")


def test_a_killed_run_leaves_no_folder_and_the_next_one_cleans_up(
    tmp_path: Path, output: Path
) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert left(tmp_path) == {".prepared.part"}
    prepare(parts.recipe(tmp_path), output)
    assert left(tmp_path) == {"prepared"}
    Artefact.open(output, model=parts.MODEL).verify()


def test_an_existing_folder_is_not_touched(tmp_path: Path, output: Path) -> None:
    output.mkdir()
    with pytest.raises(ModelUnavailable, match="exists: remove it or choose another folder"):
        prepare(parts.recipe(tmp_path), output)
    assert list(output.iterdir()) == []


def test_two_runs_at_once_are_refused(tmp_path: Path, output: Path) -> None:
    part = tmp_path / ".prepared.part"
    part.mkdir()
    handle = os.open(part, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ModelUnavailable, match="another run is writing"):
        prepare(parts.recipe(tmp_path), output)
    os.close(handle)


# --- what can't be prepared -------------------------------------------------------------------


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e6])
def test_numbers_that_float16_does_not_hold_are_named(
    tmp_path: Path, output: Path, number: float
) -> None:
    with pytest.raises(ModelUnavailable, match="odd is not finite"):
        prepare(parts.recipe(tmp_path, {"odd": torch.tensor([1.0, number])}), output)


@pytest.mark.parametrize("shape", [(64, 96), (48, 128)])
def test_a_projection_that_the_kernels_would_refuse_is_named(
    tmp_path: Path, output: Path, shape: tuple[int, int]
) -> None:
    recipe = parts.recipe(tmp_path, {parts.PACKED: torch.zeros(shape)})
    with pytest.raises(ModelUnavailable, match=f"{parts.PACKED} is .* NF4 needs multiples"):
        prepare(recipe, output)
    prepare(recipe, output, quantisation="none")


@pytest.mark.parametrize("installed", ["0.49.1", "0.51.0", None])
def test_another_bitsandbytes_is_refused_with_the_fix(
    tmp_path: Path, output: Path, installed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(nf4, "version", version)
    said = r"bitsandbytes .*pip install 'bitsandbytes>=0\.50\.2,<0\.51'"
    with pytest.raises(ModelUnavailable, match=said):
        prepare(parts.recipe(tmp_path), output)
    assert left(tmp_path) == set()
    prepare(parts.recipe(tmp_path), output, quantisation="none")  # needs none
