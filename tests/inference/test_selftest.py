"""The self-test passes a good model and finds what is wrong with a bad one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch import nn

from inference import selftest
from inference.demo.model import PUBLISHED, DemoModel
from inference.findings import ModelFailure, ModelUnavailable
from inference.models import Options
from inference.selftest import Said
from inference.weights.prepare import prepare
from tests.worker.conftest import install
from tests.worker.rule_model import RuleModel


@pytest.fixture(scope="session", params=["nf4", "none"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's weights, prepared here."""
    folder = tmp_path_factory.mktemp("demo") / "prepared"
    prepare(DemoModel.recipe(PUBLISHED, None), folder, quantisation=request.param)
    return folder


@pytest.fixture
def model(prepared: Path) -> Iterator[DemoModel]:
    loaded = DemoModel.load(prepared, device="cpu", options=Options(slots=1, draft_tokens=0))
    yield loaded
    loaded.close()


def failed(model: DemoModel) -> list[str]:
    """Names of the layers that the self-test finds wrong."""
    return [c.name for c in selftest.layers(model.language, model.artefact) if not c.passed]


def test_a_good_model_passes(prepared: Path) -> None:
    verdict = selftest.run("demo", prepared, device="cpu")
    assert [one.name for one in verdict.checks if not one.passed] == [], verdict
    assert [one.name for one in verdict.checks] == ["files", "layer 0", "layer 2", "engine"]
    assert verdict.device == "cpu"


def test_a_changed_file_is_named(prepared: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in prepared.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelUnavailable, match=r"model\.safetensors"):
        selftest.run("demo", copy, device="cpu")


def test_a_model_without_prepared_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "rules", RuleModel)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelUnavailable, match="nothing to verify"):
        selftest.run("rules", None, device="cpu")


def test_layers_compute_what_the_reference_computes(model: DemoModel) -> None:
    assert failed(model) == []


def test_a_changed_norm_is_found(model: DemoModel) -> None:
    model.language.layers[0].input_layernorm.weight.mul_(1.2)
    assert failed(model) == ["layer 0"]


def test_another_rotation_is_found(model: DemoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.llama.RotaryTable.turn", lambda table, x, positions: x)
    assert failed(model) == ["layer 0", "layer 2"]


def test_a_projection_that_computes_nonsense_is_found(model: DemoModel) -> None:
    mlp = model.language.layers[-1].mlp
    mlp.down_proj = nn.Sequential(mlp.down_proj, nn.Dropout(p=0.1).train())
    assert failed(model) == ["layer 2"]


def test_not_a_number_fails(model: DemoModel) -> None:
    model.language.layers[0].post_attention_layernorm.weight.fill_(float("nan"))
    assert failed(model) == ["layer 0"]


def test_unpacking_is_what_bitsandbytes_does() -> None:
    weight = torch.randn(96, 256, generator=torch.Generator().manual_seed(0)).half()
    packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    theirs = dequantize_4bit(packed, state).float()
    ours = selftest.unpack(packed, state.as_dict(packed=True))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)  # theirs rounds to float16


def test_a_failing_model_is_a_failed_check(
    model: DemoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, *args: object) -> None:
        raise ModelFailure("the model's logits are not finite")

    monkeypatch.setattr(DemoModel, "read", fail)
    check = selftest.compare(selftest.attempt(model, at_once=1), Said(), half=False)
    assert (check.passed, check.text) == (False, "the model's logits are not finite")


@pytest.mark.parametrize(
    ("busy", "half", "passed"),
    [
        pytest.param(("a", "b"), False, True, id="same"),
        pytest.param(("a", "c"), False, False, id="one-differs"),
        pytest.param(("a", "c"), True, True, id="one-differs-in-half-precision"),
        pytest.param(("c", "d"), True, False, id="all-differ-in-half-precision"),
    ],
)
def test_the_engine_must_say_the_same(busy: tuple[str, ...], half: bool, passed: bool) -> None:
    plain = Said(texts=("a", "b"))
    assert selftest.compare(plain, Said(texts=busy), half=half).passed is passed
