"""Published tensors are read one at a time, and what is wrong with a file is said."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from inference.findings import ModelUnavailable
from inference.weights import files
from inference.weights.files import Checkpoint, State
from tests.inference.published import put

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Three tensors in two shards."""
    save_file({"a": torch.zeros(2, 3), "b": torch.ones(4)}, tmp_path / FIRST)
    save_file({"c": torch.full((5,), 2.0)}, tmp_path / SECOND)
    put(tmp_path / INDEX, {"weight_map": {"a": FIRST, "b": FIRST, "c": SECOND}})
    return tmp_path


def test_names_and_shapes_of_all_shards_are_known(sharded: Path) -> None:
    checkpoint = Checkpoint.find(sharded, "model")
    assert checkpoint.shapes == {"a": (2, 3), "b": (4,), "c": (5,)}
    assert {path.name for path in checkpoint.files} == {FIRST, SECOND, INDEX}


def test_a_tensor_is_read_on_demand(sharded: Path) -> None:
    checkpoint = Checkpoint.find(sharded, "model")
    assert torch.equal(checkpoint.read("c"), torch.full((5,), 2.0))
    assert torch.equal(checkpoint.read("a"), torch.zeros(2, 3))


def test_at_most_one_shard_is_open(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    mapped = files._mapped

    def noted(path: Path) -> State:
        assert checkpoint._open is None
        opened.append(path.name)
        return mapped(path)

    checkpoint = Checkpoint.find(sharded, "model")
    monkeypatch.setattr(files, "_mapped", noted)
    for name in ("a", "b", "c", "a"):
        checkpoint.read(name)
    assert opened == [FIRST, SECOND, FIRST]


def test_what_was_read_outlives_its_shard(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    torch.save({"a": torch.ones(1000)}, path)
    tensor = Checkpoint.find(tmp_path, "model").read("a")
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(tensor, torch.ones(1000))


def test_safetensors_come_before_pickles(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.bin")
    assert Checkpoint.find(tmp_path, "model").read("a") == 1


def test_a_training_checkpoint_gives_its_state(tmp_path: Path) -> None:
    rates = {"param_groups": [{"lr": np.float64(1e-4)}]}
    torch.save({"state_dict": {"a": torch.ones(1)}, "optimizer": rates}, tmp_path / "clip.pt")
    assert Checkpoint.find(tmp_path, "clip").shapes == {"a": (1,)}


def test_ignored_tensors_are_not_there(sharded: Path) -> None:
    checkpoint = Checkpoint.find(sharded, "model", ignore=("^a$",))
    assert checkpoint.shapes.keys() == {"b", "c"}


def test_an_ignored_tensor_need_not_stand_in_the_index(sharded: Path) -> None:
    put(sharded / INDEX, {"weight_map": {"b": FIRST, "c": SECOND}})
    assert Checkpoint.find(sharded, "model", ignore=("^a$",)).shapes.keys() == {"b", "c"}


# --- what is wrong is named -------------------------------------------------------------------


def refused(folder: Path, said: str) -> None:
    with pytest.raises(ModelUnavailable, match=said):
        Checkpoint.find(folder, "model")


def test_nothing_there_is_said(tmp_path: Path) -> None:
    refused(tmp_path, r"holds no model \(.safetensors, .bin or .pt\): download it")


def test_each_missing_shard_is_named(sharded: Path) -> None:
    for name in (FIRST, SECOND):
        (sharded / name).unlink()
    refused(sharded, f"lacks {FIRST}, {SECOND}, which {INDEX} names: download it")


def test_a_tensor_that_its_shard_lacks_is_named(sharded: Path) -> None:
    put(sharded / INDEX, {"weight_map": {"a": FIRST, "b": FIRST, "c": SECOND, "d": SECOND}})
    refused(sharded, f"{SECOND} lacks d: download it and its index again")


def test_a_tensor_that_the_index_does_not_name_is_named(sharded: Path) -> None:
    put(sharded / INDEX, {"weight_map": {"a": FIRST, "c": SECOND}})
    refused(sharded, f"{FIRST} holds b, which the index does not name")


def test_a_tensor_in_two_shards_is_named(sharded: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "c": torch.ones(5)}, sharded / SECOND)
    refused(sharded, f"{SECOND} holds a, which the index does not name")


@pytest.mark.parametrize("content", [["a"], {"a": 1}, {"weight_map": ["a"]}])
def test_an_index_that_is_none_is_named(sharded: Path, content: object) -> None:
    put(sharded / INDEX, content)
    refused(sharded, INDEX.replace(".", r"\."))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("kept", [0, 1, 100, -200])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"model.{suffix}"
    state = {"a": torch.ones(1000)}
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    os.truncate(path, kept if kept >= 0 else path.stat().st_size + kept)
    refused(tmp_path, rf"model\.{suffix} is damaged, download it again")


@pytest.mark.parametrize("content", [[torch.ones(1)], {"a": 1}, {"state_dict": None}])
def test_a_pickle_of_something_else_is_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.bin")
    refused(tmp_path, r"model\.bin holds something else than tensors by name")


class Exploit:
    """Unpickles to a call."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("where", ["state", "beside"])
def test_a_pickle_that_holds_code_is_refused(tmp_path: Path, where: str) -> None:
    trace = tmp_path / "was-here"
    exploit = Exploit(trace)
    content = {"a": exploit} if where == "state" else {"state_dict": {}, "optimizer": exploit}
    torch.save(content, tmp_path / "model.bin")
    refused(tmp_path, r"model\.bin holds code, refused: \w+\.mkdir")
    assert not trace.exists()


def test_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "was-here"
    (tmp_path / "model.bin").write_bytes(pickle.dumps(Exploit(trace)))
    refused(tmp_path, r"model\.bin is a bare pickle, which may hold code: refused")
    assert not trace.exists()


# --- configuration files ----------------------------------------------------------------------


def test_a_setting_is_found_below_its_keys(tmp_path: Path) -> None:
    put(tmp_path / "config.json", {"vision_cfg": {"image_size": 28}})
    assert files.setting(tmp_path / "config.json", "vision_cfg", "image_size") == 28


@pytest.mark.parametrize("keys", [("depth",), ("vision_cfg", "depth"), ("image_size", "depth")])
def test_a_setting_that_is_not_there_is_named(tmp_path: Path, keys: tuple[str, ...]) -> None:
    put(tmp_path / "config.json", {"vision_cfg": {}, "image_size": 28})
    with pytest.raises(ModelUnavailable, match=rf"config\.json lacks {'.'.join(keys)}"):
        files.setting(tmp_path / "config.json", *keys)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "is missing: download it"), ("{", "can't be read"), ("[1]", "is no JSON object")],
)
def test_a_broken_configuration_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ModelUnavailable, match=rf"config\.json {said}"):
        files.read_json(path)


def test_another_value_than_expected_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "config.json", {"layer": -1})
    files.expect(tmp_path / "config.json", {"layer": -1, "unset": True})
    with pytest.raises(ModelUnavailable, match="layer is -1, only -2 is known here"):
        files.expect(tmp_path / "config.json", {"layer": -2})
