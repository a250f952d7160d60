"""The three training stages of the demo model (demo-model.md section 4).

The tower learns to see findings, the language model to say them, the retrieval heads to match
images and texts. Each stage is a function from what came before to a trained network.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, LlamaConfig, LlamaForCausalLM

from inference import prompt
from inference.demo import report
from inference.demo.dataset import GRID, PATCH, SIDE, Example
from inference.demo.phantom import LABELS
from inference.embeddings import CONTEXT, TextEncoder, WordPiece
from inference.llama import EOS_ID
from inference.vision import VisionConfig, VisionEncoder, normalise

# Sizes: every Llama projection fits bitsandbytes' CPU kernel (in % 64 == 0, out % 32 == 0).
VISION = VisionConfig(image_size=SIDE, patch=PATCH, width=128, depth=5, embedding=128)
LANGUAGE_WIDTH = 192

BATCH = 32
RETRIEVAL_BATCH = 128
NOISE = 4.0  # grey levels: largest standard deviation of the noise added to training images
SENTENCE_SHARE = 0.3  # of stage 3's texts are one sentence, or it would never see short queries
IGNORED = -100  # torch's cross entropy skips this target

Track = Callable[[range, str], Iterable[int]]  #: shows progress over the steps of a named stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What every stage draws from."""

    examples: Sequence[Example]
    seed: int
    track: Track
    draw: random.Random = field(default_factory=random.Random)

    def seeded(self, stage: str) -> Material:
        """Start a stage with random draws of its own, so that it can be repeated alone."""
        torch.manual_seed(self.seed)
        return replace(self, draw=random.Random(f"{stage} {self.seed}"))

    def batches(self, size: int, steps: int, what: str) -> Iterator[list[int]]:
        """Indices of examples: epoch after epoch, each in a new order."""
        order: list[int] = []
        for _ in self.track(range(steps), what):
            if len(order) < size:
                order = self.draw.sample(range(len(self.examples)), len(self.examples))
            batch, order = order[:size], order[size:]
            yield batch

    def write(self, index: int) -> str:
        """Write an example's report in a wording of its own."""
        example = self.examples[index]
        return report.write(example.labels, example.sizes, seed=self.draw.getrandbits(32))

    def pixels(self) -> Tensor:
        """(n, S, S) uint8."""
        return torch.from_numpy(np.stack([example.pixels for example in self.examples]))


class Descent:
    """AdamW with warm-up, cosine decay to 2 % and clipped gradients."""

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        *,
        steps: int,
        decay: float,
        beta2: float = 0.98,
        warm_up: int = 100,
    ) -> None:
        self.weights = list(weights)
        self.optimiser = torch.optim.AdamW(
            self.weights, lr=1e-3, betas=(0.9, beta2), weight_decay=decay
        )

        def factor(step: int) -> float:
            cosine = 0.5 + 0.5 * math.cos(math.pi * min(step / steps, 1))
            return min((step + 1) / warm_up, 1) * (0.02 + 0.98 * cosine)

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, factor)

    def step(self, loss: Tensor) -> None:
        """Move the weights once against the gradient of ``loss``."""
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimiser.step()
        self.schedule.step()


def half() -> torch.autocast:
    """bfloat16 where it pays; float32 training was 1.4-2.4 times slower on AVX512-BF16."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


# --- 1: the tower -----------------------------------------------------------------------------


class Probes(nn.Module):
    """Throw-away heads that tell the tower what to see: findings per patch, findings per image."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(VISION.width)
        self.patch = nn.Linear(VISION.width, len(LABELS))
        self.image = nn.Linear(VISION.width, len(LABELS))


def train_tower(material: Material, *, steps: int) -> VisionEncoder:
    """Train the tower on block -2 per patch and on the last CLS row per image."""
    material = material.seeded("tower")
    encoder, probes = new_encoder().train(), Probes()
    weights = chain(encoder.trunk.parameters(), probes.parameters())
    descent = Descent(weights, steps=steps, decay=0.05)
    pixels = material.pixels()
    patches = torch.from_numpy(np.stack([e.patches for e in material.examples])).float()
    present = torch.from_numpy(np.stack([e.present for e in material.examples])).float()
    rare = torch.tensor(3.0)  # weight of a positive patch
    for batch in material.batches(BATCH, steps, "tower"):
        with half():
            x = encoder.trunk.before_last(noisy(pixels[batch]))
            by_patch = probes.patch(probes.norm(x[:, 1:]))  # (B, N, 19)
            by_image = probes.image(encoder.trunk.summary(x))  # (B, 19)
        bce = F.binary_cross_entropy_with_logits
        loss = len(LABELS) * bce(by_patch.float(), patches[batch], pos_weight=rare)
        descent.step(loss + 4 * bce(by_image.float(), present[batch]))
    return encoder.eval()


def new_encoder() -> VisionEncoder:
    """Build the untrained tower.

    Sine/cosine positions and a layer scale of .5 (DINOv2 starts at 1e-5): with random positions
    it sat at the base rate for a thousand steps.
    """
    encoder = VisionEncoder(VISION)
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
    for name, weight in encoder.named_parameters():
        if name.endswith(".bias"):
            nn.init.zeros_(weight)
        elif name.endswith(".gamma"):
            nn.init.constant_(weight, 0.5)
    nn.init.normal_(encoder.trunk.cls_token, std=0.02)
    encoder.trunk.pos_embed.data[0, 1:] = 0.5 * sine_cosine()
    return encoder


def sine_cosine() -> Tensor:
    """(N, D) fixed 2-D positions: half of the channels tell the row, half the column."""
    quarter = VISION.width // 4
    omega = 10_000 ** -(torch.arange(quarter) / quarter)
    angle = torch.arange(GRID)[:, None] * omega  # (G, D / 4)
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # (G, D / 2)
    rows, columns = line[:, None].expand(-1, GRID, -1), line[None].expand(GRID, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def noisy(pixels: Tensor) -> Tensor:
    """(B, S, S) uint8 -> (B, 3, S, S) normalised float32 with noise of sd 0 to ``NOISE``."""
    spread = NOISE * torch.rand(len(pixels), 1, 1)
    grey = pixels + spread * torch.randn(pixels.shape)
    return normalise(grey[:, None].expand(-1, 3, -1, -1))


@torch.no_grad()  # not inference mode: its tensors can't be an input of training
def see(encoder: VisionEncoder, pixels: Tensor) -> Tensor:
    """(n, S, S) uint8 -> (n, 1 + N, D) bfloat16: block -2 of every image, CLS first."""
    chunks = []
    for part in torch.split(pixels, 64):
        with half():
            x = encoder.trunk.before_last(normalise(part[:, None].expand(-1, 3, -1, -1)))
        chunks.append(x.bfloat16())
    return torch.cat(chunks)


# --- 2: the language model --------------------------------------------------------------------


def train_language(
    material: Material, seen: Tensor, tokenise: prompt.Tokenise, vocabulary: int, *, steps: int
) -> tuple[nn.Sequential, LlamaForCausalLM]:
    """Train projector and Llama to write the report; ``seen`` (n, 1 + N, D) stays as it is."""
    material = material.seeded("language")
    projector, language = new_language(vocabulary)
    weights = chain(projector.parameters(), language.parameters())
    descent = Descent(weights, steps=steps, decay=0.01)
    asked = prompt.build(tokenise, None)
    for batch in material.batches(BATCH, steps, "language"):
        answers = [[*tokenise(material.write(i)), EOS_ID] for i in batch]
        after, targets = pad([[*asked.after, *answer] for answer in answers], len(asked.after))
        with half():
            image = projector(seen[batch][:, 1:].float())  # (B, N, D)
            embed = language.get_input_embeddings()
            before = embed(torch.tensor(asked.before)).expand(len(batch), -1, -1)
            embeds = torch.cat([before, image, embed(after)], dim=1)
            logits = language(inputs_embeds=embeds, logits_to_keep=after.shape[1]).logits
        descent.step(F.cross_entropy(logits[:, :-1].float().transpose(1, 2), targets[:, 1:]))
    return projector, language


def new_language(vocabulary: int) -> tuple[nn.Sequential, LlamaForCausalLM]:
    """Build the untrained projector and Llama."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=LANGUAGE_WIDTH,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        initializer_range=0.04,
        pad_token_id=0,
        bos_token_id=prompt.BOS_ID,
        eos_token_id=EOS_ID,
        tie_word_embeddings=False,
    )
    language = LlamaForCausalLM(config).train()
    language.set_attn_implementation("eager")  # as plain_attention: a faster backward on CPU
    projector = nn.Sequential(
        nn.Linear(VISION.width, LANGUAGE_WIDTH),
        nn.GELU(),
        nn.Linear(LANGUAGE_WIDTH, LANGUAGE_WIDTH),
    )
    return projector, language


def pad(rows: Sequence[Sequence[int]], given: int) -> tuple[Tensor, Tensor]:
    """Ids and targets (B, T); the first ``given`` of each row and the padding are no targets."""
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.full_like(ids, IGNORED)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        targets[i, given : len(row)] = ids[i, given : len(row)]
    return ids, targets


# --- 3: retrieval -----------------------------------------------------------------------------


def train_retrieval(
    material: Material,
    seen: Tensor,
    encoder: VisionEncoder,
    vocabulary: Sequence[str],
    *,
    steps: int,
) -> tuple[TextEncoder, Tensor]:
    """Train both heads, BERT and what follows block -2; block -2 itself stays as it is.

    Returns the text tower and the logarithm of the similarity's scale.
    """
    material = material.seeded("retrieval")
    words, text = WordPiece(vocabulary), new_text(len(vocabulary)).train()
    scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's start
    encoder.train()
    last = (encoder.trunk.blocks[-1], encoder.trunk.norm, encoder.head, text)
    weights = chain([scale], *(module.parameters() for module in last))
    descent = Descent(weights, steps=steps, decay=0.01, beta2=0.999, warm_up=50)
    for batch in material.batches(RETRIEVAL_BATCH, steps, "retrieval"):
        texts = [query(material.write(i), material.draw) for i in batch]
        matches = positives([material.examples[i].labels for i in batch], texts)
        with half():
            images = encoder.head(encoder.trunk.summary(seen[batch].float()))
            vectors = text(words.batch(texts))
        similarity = F.normalize(images.float(), dim=-1) @ vectors.T * scale.exp()
        descent.step((agree(similarity, matches) + agree(similarity.T, matches.T)) / 2)
    encoder.eval()
    return text.eval(), scale.detach()


def new_text(vocabulary: int) -> TextEncoder:
    """Build the untrained text tower."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=CONTEXT,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return TextEncoder(config, VISION.embedding)


def query(text: str, draw: random.Random) -> str:
    """Keep the report, or sometimes only one of the sentences that state a finding."""
    sentences = [s + "." for s in text.rstrip(".").split(". ") if report.parse(s)]
    return draw.choice(sentences) if sentences and draw.random() < SENTENCE_SHARE else text


def positives(labels: Sequence[frozenset[str]], texts: Sequence[str]) -> Tensor:
    """(B, B) which images (rows) fit which texts: the same findings, or those of the sentence."""
    said = [(report.parse(text), text.count(".") == 1) for text in texts]
    rows = [[found <= has if lone else found == has for found, lone in said] for has in labels]
    return torch.tensor(rows).float()


def agree(similarity: Tensor, matches: Tensor) -> Tensor:
    """Cross entropy of each row's softmax with its matches as joint, equally likely targets."""
    return F.cross_entropy(similarity, matches / matches.sum(dim=1, keepdim=True).clamp(min=1))
