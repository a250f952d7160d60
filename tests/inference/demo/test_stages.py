"""Each training stage, on a handful of phantoms."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.demo import stages
from inference.demo.dataset import RENDERED, reduce
from inference.demo.phantom import LABELS, render, scene
from inference.embeddings import WordPiece
from inference.vision import VisionEncoder
from tests.inference.plain import greedy

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "no", "heart", "lungs", "effusion"]


def silently(steps: range, _: str) -> Iterable[int]:
    return steps


def tokenise(text: str) -> list[int]:
    """Words as ids 3 to 99."""
    return [3 + sum(map(ord, word)) % 97 for word in text.split()]


@pytest.fixture(scope="module")
def material() -> stages.Material:
    phantoms = [scene(seed) for seed in range(8)]
    examples = [reduce(phantom, render(phantom, RENDERED)) for phantom in phantoms]
    return stages.Material(examples=examples, seed=0, track=silently)


@pytest.fixture(scope="module")
def encoder(material: stages.Material) -> VisionEncoder:
    return stages.train_tower(material, steps=2)


@pytest.fixture(scope="module")
def seen(material: stages.Material, encoder: VisionEncoder) -> Tensor:
    return stages.see(encoder, material.pixels())


def test_batches_visit_every_example_before_any_again(material: stages.Material) -> None:
    batches = list(material.seeded("x").batches(4, 6, "x"))
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        assert sorted(first + second) == list(range(8))
    assert len({tuple(batch) for batch in batches}) > 2


def test_a_stage_can_be_repeated(material: stages.Material, encoder: VisionEncoder) -> None:
    again = stages.train_tower(material, steps=2)
    for name, weight in encoder.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_positions_of_neighbours_are_alike() -> None:
    positions = F.normalize(stages.sine_cosine(), dim=1).view(stages.GRID, stages.GRID, -1)
    here = positions[5, 5]
    assert here @ positions[5, 6] > here @ positions[5, 9]
    assert here @ positions[6, 5] == pytest.approx(float(here @ positions[5, 6]), abs=1e-5)


def test_noise_is_bounded_and_differs_by_image() -> None:
    torch.manual_seed(0)
    grey = torch.full((200, 28, 28), 128, dtype=torch.uint8)
    red = stages.noisy(grey)[:, 0]
    spread = red.std(dim=(1, 2)) * 0.26862954 * 255
    assert spread.max() < 1.1 * stages.NOISE
    assert spread.min() < 0.5


def test_features_are_block_two_of_the_encoder(
    material: stages.Material, encoder: VisionEncoder, seen: Tensor
) -> None:
    pixels = stages.normalise(material.pixels()[:, None].expand(-1, 3, -1, -1))
    with torch.no_grad():
        features, _ = encoder(pixels)
    assert seen.shape == (8, 145, 128)
    assert torch.allclose(seen[:, 1:].float(), features, atol=0.05)


def test_language_learns_to_write(material: stages.Material, seen: Tensor) -> None:
    one = stages.Material(examples=material.examples[:1], seed=0, track=silently)
    projector, language = stages.train_language(one, seen[:1], tokenise, 100, steps=150)
    language.eval()
    with torch.no_grad():
        image = projector(seen[:1, 1:].float())
    asked = stages.prompt.build(tokenise, None)
    embed = language.get_input_embeddings()
    before, after = (embed(torch.tensor([part])) for part in (asked.before, asked.after))
    answer = greedy(language, torch.cat([before, image, after], dim=1), max_new_tokens=80)
    wordings = [[*tokenise(one.write(0)), stages.EOS_ID] for _ in range(200)]
    assert list(answer.ids) in wordings


def test_targets_are_the_answer_only() -> None:
    ids, targets = stages.pad([[7, 8, 5, 2], [7, 8, 6, 6, 2]], given=2)
    ignored = stages.IGNORED
    assert ids.tolist() == [[7, 8, 5, 2, 0], [7, 8, 6, 6, 2]]
    assert targets.tolist() == [[ignored, ignored, 5, 2, ignored], [ignored, ignored, 6, 6, 2]]


def test_retrieval_leaves_the_features_alone(
    material: stages.Material, encoder: VisionEncoder, seen: Tensor
) -> None:
    before = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    try:
        text, scale = stages.train_retrieval(material, seen, encoder, WORDS, steps=2)
        changed = {n for n, w in encoder.state_dict().items() if not torch.equal(w, before[n])}
    finally:
        encoder.load_state_dict(before)
    assert changed
    assert all(n.startswith(("trunk.blocks.4.", "trunk.norm.", "head.")) for n in changed)
    assert scale.exp() > 1
    assert text(WordPiece(WORDS).batch(["no effusion"])).shape == (1, 128)


def test_equal_findings_are_joint_positives() -> None:
    labels = [frozenset({"pacemaker"}), frozenset({"pacemaker"}), frozenset({"cardiomegaly"})]
    texts = ["A left pacemaker is present. The heart size is normal."] * 2 + [
        "There is cardiomegaly. The lungs are clear."
    ]
    assert stages.positives(labels, texts).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_a_lone_sentence_fits_every_image_with_its_finding() -> None:
    labels = [frozenset({"pacemaker", "cardiomegaly"}), frozenset({"cardiomegaly"}), frozenset()]
    texts = ["There is cardiomegaly."] * 3
    assert stages.positives(labels, texts).tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0]]


def test_queries_are_whole_reports_or_positive_sentences() -> None:
    draw = random.Random(0)
    text = "There is cardiomegaly. The lungs are clear. A left pacemaker is present."
    drawn = [stages.query(text, draw) for _ in range(1000)]
    assert set(drawn) == {text, "There is cardiomegaly.", "A left pacemaker is present."}
    assert 0.65 < drawn.count(text) / 1000 < 0.75
    assert stages.query("The lungs are clear. The heart size is normal.", draw).count(".") == 2


def test_agreement_is_best_when_the_matches_win() -> None:
    matches = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    right, wrong = stages.agree(10 * matches, matches), stages.agree(10 * (1 - matches), matches)
    assert float(right) == pytest.approx(2 / 3 * 0.6931, abs=1e-3)  # two equal winners: log 2
    assert wrong > 5


def test_the_rate_warms_up_and_decays_to_two_per_cent() -> None:
    weight = nn.Parameter(torch.ones(1))
    descent = stages.Descent([weight], steps=200, decay=0.0, warm_up=10)
    rates = []
    for _ in range(200):
        rates.append(descent.optimiser.param_groups[0]["lr"])
        descent.step((weight**2).sum())
    assert rates[0] == pytest.approx(1e-4, rel=0.01)
    assert max(rates) == pytest.approx(1e-3, rel=0.02)
    assert rates[-1] == pytest.approx(2e-5, rel=0.05)


def test_there_is_a_probe_for_every_label() -> None:
    assert stages.Probes().patch.out_features == len(LABELS) == 19
