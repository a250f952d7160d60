"""The published folder of CXR-LLaVA v2, and how it becomes prepared weights.

::

    cxr-llava-v2/  config.json, model-*.safetensors + index (or .bin), tokenizer.model,
                   tokenizer_config.json

Encoder, projector and language model lie in one checkpoint (cxr-llava.md, Tensors); there is no
adapter and no base model. The folder's remote code is not needed and never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inference.clip_vision import ClipVision
from inference.findings import ModelUnavailable
from inference.llama import LlamaConfig
from inference.vision import HEAD_WIDTH, VisionConfig
from inference.weights.files import Checkpoint, expect, read_json
from inference.weights.pieces import check_pieces
from inference.weights.recipe import Place, Recipe, language_places, parts, same_names

FOLDER = "cxr-llava-v2"

# Saved by transformers before 4.32, computed since.
LEFT_OUT = (r"\.rotary_emb\.inv_freq$",)

#: What the published config.json says and the code here relies on.
EXPECTED: Mapping[str, Any] = {
    "clip_quick_gelu": False,
    "image_aspect_ratio": "square",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
}


def recipe(source: Path, base: Path | None, *, model: str) -> Recipe:
    """Say how the published folder, or the folder it lies in, becomes prepared weights.

    Raises:
        ModelUnavailable: a file or tensor is missing, unknown or wrong; or a base was given.
    """
    if base is not None:
        raise ModelUnavailable(f"{model} brings its own language model: leave {base} out")
    folder = source / FOLDER if (source / FOLDER).is_dir() else source
    expect(folder / "config.json", EXPECTED)
    config = _config(folder / "config.json")
    check_pieces(folder / "tokenizer.model", config["language"]["vocab_size"])
    checkpoint = Checkpoint.find(folder, "model", "pytorch_model", ignore=LEFT_OUT)
    places = _places(VisionConfig(**config["vision"]), LlamaConfig(**config["language"]))
    files = [folder / name for name in ("config.json", "tokenizer.model", "tokenizer_config.json")]
    return Recipe(
        model=model,
        config=config | {"legacy": _legacy(folder / "tokenizer_config.json")},
        parts=parts(places, checkpoint, what=str(folder)),
        files={"tokenizer.model": folder / "tokenizer.model"},
        sources={f"{FOLDER}/{path.name}": path for path in (*files, *checkpoint.files)},
    )


def _places(vision: VisionConfig, language: LlamaConfig) -> list[Place]:
    with torch.device("meta"):
        encoder = ClipVision(vision)
        projector = nn.Linear(vision.width, language.hidden_size)
    return [
        *same_names(encoder, "vision.", "vision_tower."),
        *same_names(projector, "projector.", "mm_projector."),
        *language_places(language, body="llama."),
    ]


def _config(path: Path) -> dict[str, Any]:
    published = read_json(path)
    try:
        return _sizes(published)
    except KeyError as error:
        raise ModelUnavailable(f"{path} lacks {error.args[0]}: download it again") from error
    except (TypeError, ValueError) as error:
        raise ModelUnavailable(f"{path} describes another model: {error}") from error


def _sizes(published: Mapping[str, Any]) -> dict[str, Any]:
    statistics = published["image_preprocess_cfg"]
    return {
        "vision": asdict(_vision(published["clip_vision_cfg"], published["clip_embed_dim"])),
        "language": asdict(LlamaConfig.of(published["llama"])),
        # One number each: the image is grey. Version 1 has three.
        "mean": float(statistics["mean"]),
        "std": float(statistics["std"]),
    }


def _vision(published: Mapping[str, Any], embedding: int) -> VisionConfig:
    if published["width"] % HEAD_WIDTH:
        raise ValueError(f"width {published['width']} is no multiple of {HEAD_WIDTH}")
    return VisionConfig(
        image_size=published["image_size"],
        patch=published["patch_size"],
        width=published["width"],
        depth=published["layers"],
        embedding=embedding,
    )


def _legacy(path: Path) -> bool:
    """Does the tokeniser put a blank behind a special token?

    Unset means yes: transformers 4.36.2, LlamaTokenizer.__init__.
    """
    legacy = read_json(path).get("legacy")
    return True if legacy is None else bool(legacy)
