"""A prepared folder is checked while it is read; what is wrong with it is named."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.findings import ModelUnavailable
from inference.weights import artefact, nf4
from inference.weights.artefact import Artefact, Manifest
from inference.weights.prepare import prepare
from tests.inference.weights import parts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare(parts.recipe(tmp_path), tmp_path / "prepared", quantisation="none")
    return tmp_path / "prepared"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    prepare(parts.recipe(tmp_path), tmp_path / "packed")
    return tmp_path / "packed"


def read_all(folder: Path) -> None:
    """As a start does."""
    found = Artefact.open(folder, model=parts.MODEL)
    for name in found.entries:
        found.read(name)
    found.file("vocab.txt")


def refused(folder: Path, said: str) -> None:
    with pytest.raises(ModelUnavailable, match=said):
        read_all(folder)


def flip(path: Path, at: int) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def edit(folder: Path, **changes: Any) -> None:
    """Change the manifest as one would by hand."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_was_written_is_read(folder: Path) -> None:
    found = Artefact.open(folder, model=parts.MODEL)
    assert found.entries.keys() == parts.tensors().keys()
    for name, tensor in parts.tensors().items():
        assert torch.equal(found.read(name), tensor), name
    assert found.file("vocab.txt").read_text() == "clear\n"
    assert found.config == {"width": 128, "eps": 1e-5, "sizes": [1, 2]}
    found.verify()


def test_a_read_tensor_may_be_changed(folder: Path) -> None:
    found = Artefact.open(folder, model=parts.MODEL)
    found.read("odd").zero_()
    assert torch.equal(found.read("odd"), parts.tensors()["odd"])


def test_the_scheme_is_said_in_words(folder: Path, packed: Path) -> None:
    plain, four_bits = (Artefact.open(path, model=parts.MODEL) for path in (folder, packed))
    assert (plain.scheme, plain.quantisation) == ("none", "none")
    assert (four_bits.scheme, four_bits.quantisation) == ("nf4", "nf4 (block 64, double)")
    assert plain.digest != four_bits.digest


# --- what is wrong is named -------------------------------------------------------------------


def test_a_folder_that_was_never_prepared_is_named(tmp_path: Path) -> None:
    refused(tmp_path, r"holds no prepared model .*models prepare")


def test_another_model_is_named(folder: Path) -> None:
    with pytest.raises(ModelUnavailable, match="was prepared for tiny, not llava-rad"):
        Artefact.open(folder, model="llava-rad")


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"{name} is missing: prepare it again")


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt"])
def test_a_truncated_file_is_named(folder: Path, name: str) -> None:
    os.truncate(folder / name, 5)
    refused(folder, f"{name} has 5 bytes, not [0-9]+: prepare it again")


def test_a_changed_tensor_is_named(folder: Path) -> None:
    entry = Artefact.open(folder, model=parts.MODEL).entries["matrix"]
    flip(folder / "model.safetensors", entry.end - 1)
    refused(folder, "matrix is not the prepared one")
    with pytest.raises(ModelUnavailable, match=r"model\.safetensors is not the prepared one"):
        Artefact.open(folder, model=parts.MODEL).verify()


@pytest.mark.parametrize("at", [0, 20], ids=["its length", "itself"])
def test_a_changed_header_is_named(folder: Path, at: int) -> None:
    flip(folder / "model.safetensors", at)
    refused(folder, "its header is not the prepared one")


def test_an_endless_header_is_not_read_into_memory(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])
    refused(folder, "its header is not the prepared one")


def test_a_changed_copied_file_is_named(folder: Path) -> None:
    flip(folder / "vocab.txt", 0)
    refused(folder, r"vocab\.txt is not the prepared one")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"format": "x"}'])
def test_a_broken_manifest_is_named(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    refused(folder, r"manifest\.json is damaged or of another version")


def test_a_constant_changed_by_hand_is_noticed(folder: Path) -> None:
    edit(folder, config={"width": 128, "eps": 1e-6, "sizes": [1, 2]})
    refused(folder, r"manifest\.json was changed after it was written")


def test_another_format_is_named(folder: Path) -> None:
    edit(folder, format=artefact.FORMAT + 1)
    refused(folder, "has format 2, not 1")


def test_weights_of_another_bitsandbytes_are_named(packed: Path) -> None:
    edit(packed, versions=Manifest.read(packed).versions | {"bitsandbytes": "0.49.1"})
    refused(packed, r"was packed by bitsandbytes 0\.49\.1: prepare it again")


def test_an_old_bitsandbytes_is_named_before_it_is_imported(
    folder: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nf4, "version", lambda name: "0.49.1")
    refused(packed, r"bitsandbytes 0\.49\.1 can't be used here: pip install 'bitsandbytes>=0\.50")
    read_all(folder)  # needs none
