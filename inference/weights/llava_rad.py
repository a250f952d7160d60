"""The recipe of LLaVA-Rad: which published tensor goes where.

Two folders, as published (llava-rad.md sections 1 to 3)::

    vicuna-*/    config.json, tokenizer.model, pytorch_model-*.bin + index  (base language model)
    llava-rad/   config.json, adapter_config.json, adapter_model, non_lora_trainables,
                 vision checkpoint and biomedclipcxr_518.json, Biomed*BERT* folder (text tower)

The adapter is merged in float32 before anything is rounded or packed: merging into 4-bit weights
would round twice, and upstream's own 4-bit loader can't read this checkpoint at all.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertConfig

from inference.embeddings import TextEncoder
from inference.findings import ModelUnavailable
from inference.llama import LlamaConfig
from inference.vision import VisionConfig, VisionEncoder
from inference.weights.files import Checkpoint, expect, read_json, setting
from inference.weights.pieces import check_pieces
from inference.weights.recipe import Place, Recipe, account, language_places, parts, same_names

VISION_JSON = "biomedclipcxr_518.json"
PROJECTOR = "base_model.model.model.mm_projector."
ADAPTER = "base_model.model."  # before the names of the base

# All published tensors that are left out (llava-rad.md section 2). Rotary tables are computed.
IGNORED_BASE = (r"rotary_emb\.inv_freq$",)
# Whatever else lies beside the projector is a stray: upstream drops it as well.
IGNORED_TRAINED = (rf"^(?!{re.escape(PROJECTOR)})",)
# Left over from training: the pooler and the scale of the loss are not used, position ids are only
# 0, 1, 2, ... (Epoch and optimiser are no tensors of the model and are never looked at.)
IGNORED_CLIP = (
    r"text\.transformer\.pooler\.",
    r"text\.transformer\.embeddings\.position_ids$",
    r"^(module\.)?logit_scale$",
)

# What this code does, in the words of the published files: another value means another model.
LLAVA = {
    "image_aspect_ratio": "square",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
}
VISION = {"timm_pool": "", "timm_proj": "linear"}
TEXT = {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"}
LORA = {
    "bias": "none",
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "layers_to_transform": None,
    "use_rslora": False,
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The two published folders."""

    base: Path
    model: Path

    @classmethod
    def find(cls, source: Path, base: Path | None) -> Folders:
        """Take both as given, or find ``llava-rad`` and the one ``vicuna-*`` in ``source``.

        Raises:
            ModelUnavailable: one of them is missing, or there are several bases.
        """
        within = source / "llava-rad"
        model = within if within.is_dir() else source
        if base is None:
            bases = [path for path in source.glob("vicuna-*") if path.is_dir()]
            if len(bases) != 1 or model == source:
                raise ModelUnavailable(f"{source} must hold llava-rad and one vicuna-* folder")
            (base,) = bases
        return cls(base=base, model=model)

    @cached_property
    def text_tower(self) -> Path:
        """Folder with configuration and vocabulary of the text tower, beside the checkpoint."""
        name = str(setting(self.model / VISION_JSON, "text_cfg", "hf_model_name"))
        folder = self.model / name.rsplit("/", 1)[-1]
        if not folder.is_dir():
            raise ModelUnavailable(f"{folder} is missing: copy config.json and vocab.txt of {name}")
        return folder

    def settings(self) -> list[Path]:
        """The configuration files that are read."""
        own = [self.model / name for name in ("config.json", "adapter_config.json", VISION_JSON)]
        all_of_them = [self.base / "config.json", *own, self.text_tower / "config.json"]
        return [path for path in all_of_them if path.exists()]

    def label(self, path: Path) -> str:
        """A file's name for the manifest: without where the folders lie on this machine."""
        of_base = path.is_relative_to(self.base)
        inside = path.relative_to(self.base if of_base else self.model)
        return f"{'vicuna' if of_base else 'llava-rad'}/{inside.as_posix()}"


def recipe(source: Path, base: Path | None, *, model: str) -> Recipe:
    """Say how the published folders become the model called ``model``.

    ``source``: the folder of llava-rad, or one that holds it and, without ``base``, one vicuna-*.

    Raises:
        ModelUnavailable: a file or tensor is missing, unknown, unreadable or wrongly shaped.
    """
    folders = Folders.find(source, base)
    _check_settings(folders)
    llama, bert = _llama_config(folders), _bert_config(folders)
    language = _language(folders)
    trained = Checkpoint.find(folders.model, "non_lora_trainables", ignore=IGNORED_TRAINED)
    clip = _clip(folders)
    vision = _vision_config(folders, clip)
    files = {
        "tokenizer.model": folders.base / "tokenizer.model",
        "vocab.txt": folders.text_tower / "vocab.txt",
    }
    check_pieces(files["tokenizer.model"], llama.vocab_size)
    _check_words(files["vocab.txt"], bert.vocab_size)
    read = (*language.files, *trained.files, *clip.files, *files.values(), *folders.settings())
    return Recipe(
        model=model,
        config={
            "language": asdict(llama),
            "vision": asdict(vision),
            "text": read_json(folders.text_tower / "config.json"),
        },
        parts=[
            *parts(language_places(llama), language, what=str(folders.base)),
            *parts(_projector_places(vision, llama), trained, what=str(trained.files[0])),
            *parts(_clip_places(vision, bert, clip), clip, what=str(clip.files[0])),
        ],
        files=files,
        sources={folders.label(path): path for path in read},
    )


def _check_settings(folders: Folders) -> None:
    expect(folders.model / "config.json", LLAVA)
    expect(folders.model / VISION_JSON, VISION, "vision_cfg")
    expect(folders.model / VISION_JSON, TEXT, "text_cfg")


# --- language model ---------------------------------------------------------------------------


class Merged:
    """The base's tensors with the adapter's differences added, in float32."""

    def __init__(self, base: Checkpoint, adapter: Checkpoint, *, settings: Path) -> None:
        """``settings``: ``adapter_config.json``.

        Raises:
            ModelUnavailable: the adapter is of another kind or does not fit the base.
        """
        expect(settings, LORA)
        self.files = (*base.files, *adapter.files)
        self.shapes = base.shapes
        self._base = base
        self._adapter = adapter
        self._scale = setting(settings, "lora_alpha") / setting(settings, "r")
        targets = set(setting(settings, "target_modules"))
        self._adapted = {
            name
            for name, shape in base.shapes.items()
            if len(shape) == 2 and name.removesuffix(".weight").rpartition(".")[2] in targets
        }
        account(str(adapter.files[0]), self._wanted(setting(settings, "r")), adapter.shapes)

    def read(self, name: str) -> Tensor:
        """One tensor, as published or (float32) merged."""
        weight = self._base.read(name)
        if name not in self._adapted:
            return weight
        a, b = (self._adapter.read(half).float() for half in _halves(name))
        merged: Tensor = weight.float() + b @ a * self._scale  # (out, in) + (out, r) @ (r, in)
        return merged

    def _wanted(self, rank: int) -> dict[str, tuple[int, ...]]:
        wanted: dict[str, tuple[int, ...]] = {}
        for name in self._adapted:
            out, into = self.shapes[name]
            wanted |= dict(zip(_halves(name), ((rank, into), (out, rank)), strict=True))
        return wanted


def _halves(name: str) -> tuple[str, str]:
    stem = ADAPTER + name.removesuffix(".weight")
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def _language(folders: Folders) -> Checkpoint | Merged:
    base = Checkpoint.find(folders.base, "model", "pytorch_model", ignore=IGNORED_BASE)
    if not read_json(folders.model / "config.json").get("adapter", True):  # the demo model's own
        return base
    adapter = Checkpoint.find(folders.model, "adapter_model")
    return Merged(base, adapter, settings=folders.model / "adapter_config.json")


def _llama_config(folders: Folders) -> LlamaConfig:
    path = folders.base / "config.json"
    try:
        return LlamaConfig.of(read_json(path))
    except KeyError as error:
        raise ModelUnavailable(f"{path} lacks {error.args[0]}: download it again") from error
    except (TypeError, ValueError) as error:
        raise ModelUnavailable(f"{path} describes another model: {error}") from error


def _check_words(path: Path, rows: int) -> None:
    try:
        words = len(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeError) as error:
        raise ModelUnavailable(f"{path} can't be read, download it again ({error})") from error
    if words > rows:
        raise ModelUnavailable(f"{path} has {words} pieces, the network only {rows} embeddings")


# --- projector and towers ---------------------------------------------------------------------


def _projector_places(vision: VisionConfig, llama: LlamaConfig) -> list[Place]:
    wide = llama.hidden_size
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(vision.width, wide), nn.GELU(), nn.Linear(wide, wide))
    return same_names(network, "projector.", PROJECTOR)


def _clip(folders: Folders) -> Checkpoint:
    """The CLIP pair: ``visual.*`` and ``text.*``, behind ``module.`` as training saves them."""
    name = str(setting(folders.model / "config.json", "mm_vision_tower_checkpoint"))
    return Checkpoint.find(folders.model, Path(name).stem, ignore=IGNORED_CLIP)


def _root(clip: Checkpoint) -> str:
    return "module." if all(name.startswith("module.") for name in clip.shapes) else ""


def _vision_config(folders: Folders, clip: Checkpoint) -> VisionConfig:
    size = int(setting(folders.model / VISION_JSON, "vision_cfg", "image_size"))
    prefix = f"{_root(clip)}visual."
    outline = {
        name.removeprefix(prefix): torch.empty(shape, device="meta")
        for name, shape in clip.shapes.items()
        if name.startswith(prefix)
    }
    try:
        return VisionConfig.of(outline, image_size=size)
    except (KeyError, ValueError) as error:
        raise ModelUnavailable(f"vision checkpoint: no ViT with a linear head: {error}") from error


def _bert_config(folders: Folders) -> BertConfig:
    path = folders.text_tower / "config.json"
    try:
        return BertConfig.from_dict(read_json(path))
    except (TypeError, ValueError) as error:
        raise ModelUnavailable(f"{path} describes another model: {error}") from error


def _clip_places(vision: VisionConfig, bert: BertConfig, clip: Checkpoint) -> list[Place]:
    root = _root(clip)
    with torch.device("meta"):
        image, text = VisionEncoder(vision), TextEncoder(bert, vision.embedding)
    return [
        *same_names(image, "vision.", f"{root}visual."),
        *same_names(text, "text.", f"{root}text."),
    ]
