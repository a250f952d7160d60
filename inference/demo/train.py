"""Train the demo model from nothing: ``python -m inference.demo.train --output FOLDER``.

About a quarter of an hour on two idle cores. Everything is drawn from one seed; floating-point
sums still differ between processors, so weights are equal only on the same machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from inference.demo import evaluate, report, stages, vocabulary
from inference.demo.dataset import examples
from inference.demo.model import DemoModel
from inference.demo.phantom import scene
from inference.embeddings import CONTEXT, TextEncoder
from inference.vision import VisionEncoder
from inference.weights.files import State
from inference.weights.llava_rad import VISION_JSON
from inference.weights.prepare import prepare

logger = logging.getLogger(__name__)

TEXT_TOWER = "demo-text-tower"
CHECKPOINT = "biomedclipcxr_518_checkpoint"  # the published name, though the demo's side is 168
RECORDED = ("torch", "transformers", "bitsandbytes", "sentencepiece", "numpy", "pillow")

#: config.json, as far as the published one says how the parts fit together.
LLAVA_CONFIG = {
    "model_type": "llava",
    "adapter": False,  # not published so: our language model is trained as a whole
    "image_aspect_ratio": "square",
    "mm_hidden_size": stages.VISION.width,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "demo",
    "mm_vision_tower_checkpoint": f"{CHECKPOINT}.pt",
}
CLIP_CONFIG = {
    "embed_dim": stages.VISION.embedding,
    "vision_cfg": {"timm_pool": "", "timm_proj": "linear", "image_size": stages.VISION.image_size},
    "text_cfg": {
        "hf_model_name": TEXT_TOWER,
        "hf_tokenizer_name": TEXT_TOWER,
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": CONTEXT,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of what; the defaults are the measured recipe."""

    seed: int = 0
    phantoms: int = 11_000
    tower_steps: int = 3_093  # 9 epochs
    language_steps: int = 1_178  # 3.4 epochs
    retrieval_steps: int = 420
    tested: int = 200  # phantoms
    processes: int = 2  # that render phantoms

    @property
    def seeds(self) -> range:
        """Seeds of the training phantoms: others for each plan, far below the tested ones."""
        return range(self.seed * 20_000, self.seed * 20_000 + self.phantoms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Networks and tokenisers, ready to be written."""

    pieces: bytes  #: SentencePiece model
    words: Sequence[str]  #: WordPiece vocabulary
    encoder: VisionEncoder
    projector: nn.Sequential
    language: LlamaForCausalLM
    text: TextEncoder
    scale: Tensor  #: logarithm of the similarity's scale


class Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the block."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 1)
        logger.info("%s took %.0f s", stage, self.seconds[stage])


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="that render phantoms")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    make(Plan(seed=options.seed, processes=options.processes), options.output)


def make(plan: Plan, output: Path) -> None:
    """Train, write ``vicuna-base`` and ``llava-rad``, measure what was written."""
    watch = Stopwatch()
    trained = train(plan, watch)
    save_base(trained, output / "vicuna-base")
    save_model(trained, output / "llava-rad")
    with watch("measuring"), tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared"
        prepare(DemoModel.recipe(output, None), prepared)
        with closing(DemoModel.load(prepared, device="cpu")) as model:
            figures = measure(model, plan.tested)
    record = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "plan": asdict(plan),
        "figures": figures,
        "seconds": watch.seconds,
        "threads": torch.get_num_threads(),
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "versions": {name: version(name) for name in RECORDED},
    }
    write_json(output / "TRAINING.json", record)


def train(plan: Plan, watch: Stopwatch) -> Trained:
    """Run the three stages in order."""
    texts = vocabulary.reports(plan.seed)
    pieces, words = vocabulary.sentence_pieces(texts), vocabulary.words(texts)
    tokens = SentencePieceProcessor(model_proto=pieces)
    material = gather(plan, watch)
    with watch("tower"):
        encoder = stages.train_tower(material, steps=plan.tower_steps)
    with watch("features"):
        seen = stages.see(encoder, material.pixels())
    with watch("language"):
        projector, language = stages.train_language(
            material, seen, tokens.encode, len(tokens), steps=plan.language_steps
        )
    with watch("retrieval"):
        text, scale = stages.train_retrieval(
            material, seen, encoder, words, steps=plan.retrieval_steps
        )
    return Trained(
        pieces=pieces,
        words=words,
        encoder=encoder,
        projector=projector,
        language=language,
        text=text,
        scale=scale,
    )


def gather(plan: Plan, watch: Stopwatch) -> stages.Material:
    """Render the training phantoms."""
    with watch("data"):
        made = examples(plan.seeds, processes=plan.processes)
        data = list(track(made, "phantoms", total=plan.phantoms, console=terminal()))
    return stages.Material(examples=data, seed=plan.seed, track=follow)


def follow(steps: range, what: str) -> Iterable[int]:
    """Show the progress of a stage, in a terminal only."""
    return track(steps, what, console=terminal())


def terminal() -> Console:
    """Find the terminal of standard error; elsewhere nothing is drawn."""
    console = Console(stderr=True)
    console.quiet = not console.is_terminal
    return console


# --- the published layout ---------------------------------------------------------------------


def save_base(trained: Trained, folder: Path) -> None:
    """Write the language model as a Vicuna folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = trained.language.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    write_json(folder / "config.json", config)
    (folder / "tokenizer.model").write_bytes(trained.pieces)
    save_tensors(trained.language.state_dict(), folder / "model.safetensors")


def save_model(trained: Trained, folder: Path) -> None:
    """Write tower, projector and text tower as a LLaVA-Rad folder without adapter."""
    tower = folder / TEXT_TOWER
    tower.mkdir(parents=True, exist_ok=True)
    write_json(tower / "config.json", trained.text.transformer.config.to_dict())
    (tower / "vocab.txt").write_text("\n".join(trained.words) + "\n", encoding="utf-8")
    write_json(folder / "config.json", LLAVA_CONFIG)
    write_json(folder / VISION_JSON, CLIP_CONFIG)
    projector = named(trained.projector, "base_model.model.model.mm_projector.")
    save_tensors(projector, folder / "non_lora_trainables.safetensors")
    clip = named(trained.encoder, "visual.") | named(trained.text, "text.")
    save_tensors(clip | {"logit_scale": trained.scale}, folder / f"{CHECKPOINT}.safetensors")


def named(module: nn.Module, prefix: str) -> State:
    """Tensors of a module under the published names."""
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}


def save_tensors(state: State, path: Path) -> None:
    """Write tensors as float16."""
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in state.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it private, and a container runs as another user


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one JSON object, readable."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# --- what it can do ---------------------------------------------------------------------------


def measure(model: DemoModel, tested: int) -> dict[str, Any]:
    """Score the written model, 4-bit as it will run, on phantoms it was never trained on."""
    phantoms = [scene(evaluate.TEST_SEED + i) for i in range(tested)]
    drafts = [model.read([evaluate.image(phantom)], None) for phantom in phantoms]
    inverted = [
        model.read([evaluate.image(phantom, invert=True)], None).text for phantom in phantoms
    ]
    labels = [phantom.labels for phantom in phantoms]
    images = np.stack([draft.image_embedding.vector for draft in drafts if draft.image_embedding])
    texts = np.stack([
        model.embed_text(report.write(p.labels, p.sizes, seed=p.seed)).vector for p in phantoms
    ])  # fmt: skip
    return {
        "phantoms": tested,
        "first_seed": evaluate.TEST_SEED,
        "nf4": scored(labels, [draft.text for draft in drafts]),
        "nf4_inverted": scored(labels, inverted),
        "image_to_report_top1": evaluate.same_findings_top1(images, texts, labels),
        "report_to_image_top1": evaluate.same_findings_top1(texts, images, labels),
        "seconds_per_report": round(sum(sum(d.seconds.values()) for d in drafts) / tested, 3),
    }


def scored(labels: Sequence[frozenset[str]], texts: Sequence[str]) -> dict[str, float]:
    """Micro scores over the 19 findings."""
    pairs = zip(labels, map(report.parse, texts), strict=True)
    return {name: round(value, 4) for name, value in asdict(report.score(pairs)).items()}


if __name__ == "__main__":
    main()
