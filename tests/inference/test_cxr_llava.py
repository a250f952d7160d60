"""Our CXR-LLaVA computes what the published inference code computes.

The golden data holds two tiny random checkpoints in the published layout and what ECOFRI/CXR_LLaVA
at b7403b7 makes of them; the tolerances are its README's. What needs no golden data runs on a tiny
checkpoint that the tests write themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from pydicom import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation
from safetensors.torch import load_file
from torch import Tensor, nn

from inference import cxr_llava, models
from inference.cxr_llava import CxrLlava, preprocess
from inference.findings import Image, InferenceError, ModelUnavailable, UnreadablePixels
from inference.llama import Cache
from inference.llava import View
from inference.models import ReportModel
from inference.prompt import Prompt
from inference.weights.prepare import prepare
from tests.inference import published_cxr_llava as tiny

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "cxr-llava"
CASES = ("case-s64", "case-s512")

PIXELS, ROWS, LOGITS = 1e-6, 1e-4, 1e-3  # tolerances of the golden data's README

golden = pytest.mark.skipif(not GOLDEN.exists(), reason=f"no golden data in {GOLDEN}")


# --- equal to the published code --------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What upstream computed, and our model over the same weights, prepared without quantising."""

    arrays: dict[str, Tensor]
    facts: dict[str, Any]
    model: CxrLlava

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Image, question and answer of each run."""
        samples: list[dict[str, Any]] = self.facts["samples"]
        return samples

    def pictures(self) -> list[str]:
        """Names of the images whose arrays were kept."""
        prefix = "pixel_values/"
        return [name.removeprefix(prefix) for name in self.arrays if name.startswith(prefix)]

    def error(self, stage: str, name: str) -> float:
        """Largest difference to upstream's array of this stage, of an image or a sample."""
        wanted = self.arrays[f"{stage}/{name}"]
        found = STAGES[stage](self, name)
        assert found.shape == wanted.shape
        return float((found - wanted).abs().max())

    def view(self, picture: str) -> View:
        """The encoder's view of upstream's own pixels where kept, else of ours."""
        kept = self.arrays.get(f"pixel_values/{picture}")
        return see(self.model, self.model.preprocess(opened(picture)) if kept is None else kept)

    def logits(self, sample: str) -> Tensor:
        """(n, V) logits of a sample's answer, each word given those before it."""
        said = next(s for s in self.samples if s["id"] == sample)
        view = self.view(said["image"])
        return teacher_forced(self.model, view, asked(self.model, said), said["generated_ids"])


STAGES: dict[str, Callable[[Case, str], Tensor]] = {
    "pixel_values": lambda case, name: case.model.preprocess(opened(name)),
    "vision_tokens": lambda case, name: case.view(name).tokens[0],
    "projected": lambda case, name: case.view(name).features[0],
    "first_logits": lambda case, name: case.logits(name)[0],
    "sequence_logits": lambda case, name: case.logits(name),
}


def opened(picture: str) -> PilImage.Image:
    return PilImage.open(GOLDEN / "images" / f"{picture}.png")


def question(sample: dict[str, Any]) -> str:
    """What the user asked, as it is in the chat behind the image mark."""
    content: str = sample["chat"][1]["content"]
    return content.removeprefix("<image>\n")


def asked(model: CxrLlava, sample: dict[str, Any]) -> Prompt:
    return model.ask(question(sample))


@torch.inference_mode()
def see(model: CxrLlava, pixels: Tensor) -> View:
    return model.see(pixels)


@torch.inference_mode()
def teacher_forced(model: CxrLlava, view: View, prompt: Prompt, answer: list[int]) -> Tensor:
    embeds = model.splice(view.features, prompt)
    tokens, new = embeds.shape[1], len(answer) - 1
    cache = Cache(
        model.language.config,
        slots=1,
        positions=tokens + new,
        device=model.device,
        dtype=model.dtype,
    )
    first = model.language.prefill(embeds, cache, 0)
    if not new:
        return first[None]
    positions = torch.arange(tokens, tokens + new)[None]
    ids = torch.tensor([answer[:-1]])
    rest = model.language.decode(ids, positions, cache, keys=tokens + new)
    return torch.cat([first[None], rest[0]])


def answered(model: CxrLlava, view: View, prompt: Prompt) -> list[int]:
    answer = model.engine.generate(lambda: model.splice(view.features, prompt), limits=model.limits)
    return list(answer.ids)


def prepared(published: Path, output: Path) -> CxrLlava:
    prepare(CxrLlava.recipe(published, None), output, quantisation="none")
    return CxrLlava.load(output, device="cpu")


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    folder = GOLDEN / request.param
    model = prepared(folder / "cxr-llava-v2", tmp_path_factory.mktemp("golden") / "prepared")
    yield Case(
        arrays=load_file(folder / "expected.safetensors"),
        facts=json.loads((folder / "expected.json").read_text()),
        model=model,
    )
    model.close()


@golden
def test_images_are_prepared_alike(case: Case) -> None:
    for picture in case.pictures():
        assert case.error("pixel_values", picture) <= PIXELS, picture


@golden
@pytest.mark.parametrize("stage", ["vision_tokens", "projected"])
def test_images_are_seen_alike(case: Case, stage: str) -> None:
    for picture in case.pictures():
        assert case.error(stage, picture) <= ROWS, picture


@golden
def test_prompts_are_alike(case: Case) -> None:
    for sample in case.samples:
        prompt = asked(case.model, sample)
        assert prompt.text == sample["prompt"], sample["id"]
        assert prompt.ids == sample["input_ids"], sample["id"]


@golden
def test_drafts_are_asked_for_in_the_published_words(case: Case) -> None:
    reports = [sample for sample in case.samples if sample["kind"] == "report"]
    assert {sample["prompt"] for sample in reports} == {case.model.prompt(None).text}


@golden
def test_first_logits_are_alike(case: Case) -> None:
    for sample in case.samples:
        assert case.error("first_logits", sample["id"]) <= LOGITS, sample["id"]


@golden
def test_the_logits_of_whole_answers_are_alike(case: Case) -> None:
    kept = [name for name in case.arrays if name.startswith("sequence_logits/")]
    assert len(kept) == 4
    for name in kept:
        assert case.error(*name.split("/")) <= LOGITS, name


@golden
def test_the_same_words_are_written(case: Case) -> None:
    assert len(case.samples) == 16
    views = {picture: case.view(picture) for picture in case.facts["images"]}
    for sample in case.samples:
        ids = answered(case.model, views[sample["image"]], asked(case.model, sample))
        assert ids == sample["generated_ids"], sample["id"]
        assert case.model.decode(ids) == sample["upstream_text"], sample["id"]


@golden
def test_a_trace_holds_every_stage(case: Case) -> None:
    (sample,) = (s for s in case.samples if s["id"] == "portrait_gray.report")
    traced = case.model.trace(opened(sample["image"]), "Cough and fever.")
    for stage, tolerance in (
        ("pixel_values", PIXELS),
        ("vision_tokens", ROWS),
        ("projected", ROWS),
    ):
        wanted = case.arrays[f"{stage}/portrait_gray"]
        assert (traced.arrays[stage] - wanted).abs().max() <= tolerance, stage
    wanted = case.arrays["first_logits/portrait_gray.report"]
    assert (traced.arrays["first_logits"] - wanted).abs().max() <= LOGITS
    assert traced.arrays["image_embedding"].norm().item() == pytest.approx(1.0, abs=1e-5)
    assert traced.document == {
        "prompt": sample["prompt"],
        "input_ids": sample["input_ids"],
        "generated_ids": sample["generated_ids"],
        "text": sample["upstream_text"],
    }


# --- and only then: a mutant is noticed -------------------------------------------------------


@golden
@pytest.mark.parametrize(
    "name",
    [
        "vision.conv1.weight",
        "vision.positional_embedding",
        "vision.transformer.resblocks.0.attn.in_proj_weight",
        "vision.transformer.resblocks.2.mlp.c_proj.bias",
        "vision.ln_post.weight",
        "projector.weight",
        "projector.bias",
        "language.layers.0.self_attn.qkv_proj.weight",
        "language.layers.1.mlp.gate_up_proj.weight",
        "language.norm.weight",
        "language.lm_head.weight",
    ],
)
@torch.inference_mode()
def test_one_changed_weight_is_noticed(case: Case, name: str) -> None:
    owner, _, rest = name.partition(".")
    weight = getattr(case.model, owner).get_parameter(rest).view(-1)
    before = weight[0].clone()
    weight[0] += 1.0
    try:
        assert case.error("sequence_logits", "portrait_gray.report") > LOGITS
    finally:
        weight[0] = before


@golden
def test_rows_from_before_the_last_norm_are_noticed(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(case.model.vision._modules, "ln_post", nn.Identity())
    assert case.error("vision_tokens", "portrait_gray") > ROWS


@golden
def test_one_block_less_is_noticed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = case.model.vision.transformer.resblocks
    monkeypatch.setitem(case.model.vision.transformer._modules, "resblocks", blocks[:-1])
    assert case.error("vision_tokens", "portrait_gray") > ROWS


@golden
def test_another_interpolation_is_noticed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    lanczos = PilImage.Image.resize
    bicubic = PilImage.Resampling.BICUBIC
    monkeypatch.setattr(
        PilImage.Image, "resize", lambda self, size, _: lanczos(self, size, bicubic)
    )
    assert case.error("pixel_values", "portrait_gray") > PIXELS


@golden
def test_a_shifted_crop_is_noticed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = PilImage.Image.crop

    def shifted(self: PilImage.Image, box: tuple[int, ...]) -> PilImage.Image:
        left, top, right, bottom = box
        return cut(self, (left + 1, top, right + 1, bottom))

    monkeypatch.setattr(PilImage.Image, "crop", shifted)
    assert case.error("pixel_values", "landscape_rgb") > PIXELS


@golden
@pytest.mark.parametrize("words", ["SYSTEM", "REPORT"])
def test_one_changed_character_of_the_prompt_is_noticed(
    case: Case, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    text = getattr(cxr_llava, words)
    monkeypatch.setattr(cxr_llava, words, text.removesuffix("."))
    (sample,) = (s for s in case.samples if s["id"] == "portrait_gray.report")
    assert case.model.prompt(None).ids != sample["input_ids"]


# --- the prompt -------------------------------------------------------------------------------


def test_the_chat_is_llama_2s_and_the_user_is_stripped() -> None:
    before, after = cxr_llava.parts("Is there a pneumothorax?\n")
    assert before.startswith("[INST] <<SYS>>\nYou are a helpful radiologist.")
    assert before.endswith("that user provides.\n<</SYS>>\n\n")
    assert after == "\nIs there a pneumothorax? [/INST]"


def test_a_text_with_a_bos_gets_a_second_one(model: CxrLlava) -> None:
    ids = model.ask("Is the heart large?").ids
    assert ids.count(1) == 2
    assert ids[:2] == [1, 1]


def test_special_tokens_in_a_question_stay_text(model: CxrLlava) -> None:
    # Upstream would end the sequence inside the prompt.
    prompt = model.ask("What is </s><s>?")
    assert 2 not in prompt.ids
    assert 1 not in prompt.after


@pytest.mark.parametrize(("legacy", "first"), [(False, "["), (True, "▁[")])
def test_legacy_tokenisers_put_a_blank_behind_the_bos(
    tmp_path: Path, legacy: bool, first: str
) -> None:
    published = tiny.write(tmp_path / "published", tokenizer={"legacy": legacy})
    model = prepared(published, tmp_path / "prepared")
    beginning = "".join(model.pieces.id_to_piece(i) for i in model.prompt(None).before[2:8])
    model.close()
    assert beginning.startswith(f"{first}INST]")


# --- the picture ------------------------------------------------------------------------------


def test_the_centre_is_cut_out_with_a_floor() -> None:
    rows = np.arange(7, dtype=np.uint8).repeat(4).reshape(7, 4)
    pixels = preprocess(PilImage.fromarray(rows), 4, mean=0.0, std=1.0)
    assert (pixels * 255).round()[0, :, 0].tolist() == [1, 2, 3, 4]  # rounding gives 2 to 5


def test_a_picture_is_grey_and_normalised_by_one_number() -> None:
    picture = PilImage.new("RGB", (20, 30), (51, 51, 51))
    pixels = preprocess(picture, 16, mean=0.1, std=0.5)
    assert pixels.shape == (1, 16, 16)
    assert torch.allclose(pixels, torch.tensor(0.2))


def test_more_than_eight_bits_are_refused() -> None:
    deep = PilImage.fromarray(np.full((8, 8), 4095, dtype=np.uint16))
    with pytest.raises(UnreadablePixels, match="8-bit"):
        preprocess(deep, 4, mean=0.0, std=1.0)


# --- the model as a plug-in -------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CxrLlava]:
    folder = tmp_path_factory.mktemp("tiny")
    model = prepared(tiny.write(folder / "published"), folder / "prepared")
    yield model
    model.close()


@pytest.fixture
def image() -> Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 36), dtype=np.uint8)
    return Image(pixels=pixels, sop_instance_uid="2.25.1")


def test_it_comes_through_the_same_door() -> None:
    assert models.preparable("cxr-llava") is CxrLlava


def test_a_draft_knows_no_indication(model: CxrLlava, image: Image) -> None:
    findings = model.read([image], "Cough and fever.")
    assert isinstance(model, ReportModel)
    assert findings.history is None
    assert findings.text == model.read([image], None).text
    prompt = model.image_tokens + len(model.prompt(None))
    assert findings.prompt_tokens == prompt


def test_images_are_placed_and_texts_are_not(model: CxrLlava, image: Image) -> None:
    findings = model.read([image], None)
    assert findings.text_embedding is None
    assert findings.image_embedding is not None
    placed = model.embed_image(image)
    assert placed.digest == model.algorithm.digest
    assert np.array_equal(findings.image_embedding.vector, placed.vector)
    assert np.linalg.norm(placed.vector) == pytest.approx(1.0, abs=1e-5)


def test_a_search_by_words_is_told_what_to_do(model: CxrLlava) -> None:
    with pytest.raises(InferenceError, match="search by --image or --study"):
        model.embed_text("Cardiomegaly.")


def test_the_algorithm_says_how_it_was_run(model: CxrLlava) -> None:
    assert model.algorithm.name == "CXR-LLaVA"
    assert model.algorithm.version == "2.0"
    assert model.algorithm.parameters == {
        "quantisation": "none",
        "decoding": "greedy, at most 512 tokens",
        "prompt": "cxr-llava-v2-report",
        "preprocess": "mimic-jpg-v1",
    }
    assert not model.algorithm.demo


def test_radiographs_are_accepted(model: CxrLlava) -> None:
    header = Dataset()
    header.Modality, header.SOPClassUID = "DX", DigitalXRayImageStorageForPresentation
    assert model.accepts(header)
    assert not model.accepts(Dataset())


def test_four_bits_of_a_tiny_model_write_too(tmp_path: Path, image: Image) -> None:
    published = tiny.write(tmp_path / "published")
    prepare(CxrLlava.recipe(published, None), tmp_path / "prepared", quantisation="nf4")
    model = CxrLlava.load(tmp_path / "prepared", device="cpu")
    findings = model.read([image], None)
    model.close()
    assert findings.generated_tokens > 0
    assert findings.algorithm.version == "2.0+nf4"


def test_weights_must_be_given() -> None:
    with pytest.raises(ModelUnavailable, match="models prepare --model cxr-llava"):
        CxrLlava.load(None)
