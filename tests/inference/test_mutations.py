"""The golden tests would notice: each small wrong thing moves an array beyond its tolerance.

One number in one weight, the layer index, the crop, the interpolation, the statistics or one
character of the prompt is changed, and the stage that must feel it is looked at.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from torch import Tensor

from inference import cxr_llava, prompt, vision
from inference.cxr_llava import CxrLlava
from inference.llava import Llava
from inference.llava_rad import LlavaRad
from inference.weights.prepare import prepare
from tests.inference.golden import GOLDEN, MISSING, Case, seen, written

RAD = Case(GOLDEN / "llava-rad" / "case-s70")
CXR = Case(GOLDEN / "cxr-llava" / "case-s64")

pytestmark = pytest.mark.skipif(not RAD.folder.exists(), reason=MISSING)

Loaded = tuple[Llava, Case]


@pytest.fixture(scope="module")
def rad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    folder = tmp_path_factory.mktemp("rad") / "prepared"
    prepare(LlavaRad.recipe(RAD.folder, None), folder, quantisation="none")
    model = LlavaRad.load(folder, device="cpu")
    yield model, RAD
    model.close()


@pytest.fixture(scope="module")
def cxr(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    folder = tmp_path_factory.mktemp("cxr") / "prepared"
    prepare(CxrLlava.recipe(CXR.folder, None), folder, quantisation="none")
    model = CxrLlava.load(folder, device="cpu")
    yield model, CXR
    model.close()


def beyond(loaded: Loaded) -> set[str]:
    """The stages at which something is beyond its tolerance; one sample is enough to notice."""
    model, case = loaded
    sample = next(s for s in case.samples if s["image"] == "landscape_rgb")
    text = sample.get("text", sample.get("decoded", "")).strip()
    given = model.prompt(model.fit(sample.get("reason")))
    found = dict(seen(model, case)) | dict(written(model, case, sample, given, text))
    return {name.split("/")[0] for name, off in found.items() if off > 1}


@contextmanager
def moved(tensor: Tensor, *place: int) -> Iterator[None]:
    """One number of a weight, one off."""
    tensor[place] += 1
    try:
        yield
    finally:
        tensor[place] -= 1


def test_nothing_is_beyond_without_a_change(rad: Loaded, cxr: Loaded) -> None:
    assert beyond(rad) == set()
    assert beyond(cxr) == set()


VISION = {
    "patches": lambda m: m.vision.trunk.patch_embed.proj.weight[5, 0, 3],
    "position": lambda m: m.vision.trunk.pos_embed[0, 3],
    "class": lambda m: m.vision.trunk.cls_token[0, 0],
    "first block": lambda m: m.vision.trunk.blocks[0].attn.qkv.weight[7],
    "last block that counts": lambda m: m.vision.trunk.blocks[-2].mlp.fc2.weight[7],
    "layer scale": lambda m: m.vision.trunk.blocks[1].ls1.gamma,
}


@pytest.mark.parametrize("weight", VISION.values(), ids=VISION)
def test_one_number_of_the_tower_is_noticed(rad: Loaded, weight: Callable[[Llava], Tensor]) -> None:
    with moved(weight(rad[0]), 2):
        assert "vision_features" in beyond(rad)


def test_one_number_of_the_projector_is_noticed(rad: Loaded, cxr: Loaded) -> None:
    with moved(rad[0].projector[0].weight, 3, 5):  # type: ignore[attr-defined]
        assert "projected_features" in beyond(rad)
    with moved(cxr[0].projector.weight, 3, 5):  # type: ignore[attr-defined]
        assert "projected" in beyond(cxr)


def test_one_number_of_the_second_tower_is_noticed(cxr: Loaded) -> None:
    tower = cxr[0].vision  # type: ignore[attr-defined]
    for tensor in (tower.conv1.weight[3, 0, 2], tower.ln_post.weight):
        with moved(tensor, 1):
            assert "vision_tokens" in beyond(cxr)


def rows(name: str) -> list[tuple[str, int]]:
    """A row in each third or half of a fused projection."""
    parts = {"qkv_proj": 3, "o_proj": 1, "gate_up_proj": 2, "down_proj": 1}[name]
    return [(name, part) for part in range(parts)]


FUSED = [row for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj") for row in rows(name)]


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize(("name", "part"), FUSED)
def test_one_number_of_a_projection_is_noticed(
    rad: Loaded, cxr: Loaded, name: str, part: int, layer: int
) -> None:
    for loaded in (rad, cxr):
        module = loaded[0].language.layers[layer]
        block = module.self_attn if hasattr(module.self_attn, name) else module.mlp
        weight = getattr(block, name).weight
        share = len(weight) // len(rows(name))
        with moved(weight, part * share + 1, 1):
            assert beyond(loaded) & {"first_logits", "sequence_logits"}


def test_one_number_of_norm_embedding_or_head_is_noticed(rad: Loaded, cxr: Loaded) -> None:
    for model, case in (rad, cxr):
        language = model.language
        word = case.samples[0]["input_ids"][5]
        for tensor, place in (
            (language.norm.weight, (3,)),
            (language.embed_tokens.weight, (word, 1)),
            (language.lm_head.weight, (7, 3)),
            (language.layers[0].input_layernorm.weight, (2,)),
            (language.layers[1].post_attention_layernorm.weight, (2,)),
        ):
            with moved(tensor, *place):
                assert beyond((model, case)) & {"first_logits", "sequence_logits"}, place


def test_another_layer_index_is_noticed(rad: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "SELECT_LAYER", vision.SELECT_LAYER - 1)
    assert "vision_features" in beyond(rad)


def test_another_crop_is_noticed(rad: Loaded, cxr: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    # One rounds half to even, the other takes the floor; they differ where an odd number of pixels
    # is cut off.
    monkeypatch.setattr(vision, "round", math.floor, raising=False)
    monkeypatch.setattr(cxr_llava, "preprocess", rounded)
    assert {"pixel_values", "vision_features"} <= beyond(rad)
    assert {"pixel_values", "vision_tokens"} <= beyond(cxr)


def rounded(image: PilImage.Image, size: int, *, mean: float, std: float) -> Tensor:
    """CXR-LLaVA's pixels with LLaVA-Rad's crop."""
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    resized = image.convert("L").resize((width, height), PilImage.Resampling.LANCZOS)
    left, top = round((width - size) / 2 + 0.1), round((height - size) / 2 + 0.1)
    square = resized.crop((left, top, left + size, top + size))
    return (torch.from_numpy(np.array(square))[None].float() / 255 - mean) / std


class Bilinear:
    """Pillow's filters, all of them bilinear."""

    class Resampling:
        BICUBIC = LANCZOS = PilImage.Resampling.BILINEAR


def test_another_interpolation_is_noticed(
    rad: Loaded, cxr: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision, "PilImage", Bilinear)
    monkeypatch.setattr(cxr_llava, "PilImage", Bilinear)
    assert {"pixel_values", "vision_features"} <= beyond(rad)
    assert {"pixel_values", "vision_tokens"} <= beyond(cxr)


def test_another_statistic_is_noticed(
    rad: Loaded, cxr: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision, "CLIP_STD", (0.26862954, 0.26130258, 0.2758))
    monkeypatch.setattr(cxr[0], "mean", 0.551814)
    assert "pixel_values" in beyond(rad)
    assert "pixel_values" in beyond(cxr)


@pytest.mark.parametrize("name", ["SYSTEM", "QUESTION"])
@pytest.mark.parametrize("place", [0, -1])
def test_one_character_of_the_prompt_is_noticed(
    rad: Loaded, monkeypatch: pytest.MonkeyPatch, name: str, place: int
) -> None:
    monkeypatch.setattr(prompt, name, changed(getattr(prompt, name), place))
    assert {"prompt", "input_ids", "first_logits"} <= beyond(rad)


@pytest.mark.parametrize("name", ["SYSTEM", "REPORT"])
@pytest.mark.parametrize("place", [0, -1])
def test_one_character_of_the_second_prompt_is_noticed(
    cxr: Loaded, monkeypatch: pytest.MonkeyPatch, name: str, place: int
) -> None:
    monkeypatch.setattr(cxr_llava, name, changed(getattr(cxr_llava, name), place))
    assert {"prompt", "input_ids", "first_logits"} <= beyond(cxr)


def changed(text: str, place: int) -> str:
    """The text with another letter at one place."""
    letters = list(text)
    letters[place] = "x"
    return "".join(letters)


def test_a_second_bos_is_noticed(rad: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt, "BOS_ID", 2)
    assert {"input_ids", "first_logits"} <= beyond(rad)


def test_another_adapter_is_noticed(tmp_path: Path) -> None:
    """Its scale, and one number of one factor; the merge happens at ``prepare``."""
    for number, change in enumerate((halved_scale, one_off)):
        source = tmp_path / str(number)
        shutil.copytree(RAD.folder, source)
        change(source / "llava-rad")
        folder = tmp_path / f"prepared-{number}"
        prepare(LlavaRad.recipe(source, None), folder, quantisation="none")
        model = LlavaRad.load(folder, device="cpu")
        try:
            assert "first_logits" in beyond((model, RAD))
        finally:
            model.close()


def halved_scale(folder: Path) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] / 2}))


def one_off(folder: Path) -> None:
    path = folder / "adapter_model.bin"
    state = torch.load(path, weights_only=True)
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    state[name][0, 0] += 1
    torch.save(state, path)
