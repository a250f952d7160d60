"""Networks from a prepared folder are those of the published files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from inference.findings import ModelUnavailable
from inference.llama import FUSED, Llama
from inference.vision import VisionEncoder
from inference.weights import llava_rad
from inference.weights.artefact import Artefact, Scheme
from inference.weights.files import State
from inference.weights.linear4bit import UnpackingLinear4bit
from inference.weights.load import language, module
from inference.weights.prepare import prepare
from tests.inference import published

CPU = torch.device("cpu")
IDS = (1, 5, 7, 3)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.written(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def folders(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Scheme, Path]:
    """One prepared folder for each scheme."""
    folder = tmp_path_factory.mktemp("prepared")
    recipe = llava_rad.recipe(source, None, model="llava-rad")
    schemes: tuple[Scheme, ...] = ("none", "nf4")
    for scheme in schemes:
        prepare(recipe, folder / scheme, quantisation=scheme)
    return {scheme: folder / scheme for scheme in schemes}


def opened(folder: Path) -> Artefact:
    return Artefact.open(folder, model="llava-rad")


def merged(source: Path) -> State:
    """The recipe's tensors, as float32."""
    recipe = llava_rad.recipe(source, None, model="llava-rad")
    return {part.name: part.read().float() for part in recipe.parts}


def logits(network: Llama) -> torch.Tensor:
    cache = network.place(slots=1, positions=8)
    with torch.inference_mode():
        return network.prefill(network.embed(torch.tensor([IDS])), cache, 0)


def packed_layers(network: nn.Module) -> dict[str, Linear4bit]:
    return {n: m for n, m in network.named_modules() if isinstance(m, Linear4bit)}


def test_without_quantisation_the_networks_are_the_merged_ones_exactly(
    source: Path, folders: dict[Scheme, Path]
) -> None:
    found = opened(folders["none"])
    networks = {
        "language.": language(found, CPU),
        "vision.": module(
            found, VisionEncoder(published.VISION), "vision.", dtype=torch.float32, device=CPU
        ),
    }
    theirs = merged(source)
    for prefix, network in networks.items():
        assert not packed_layers(network)
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, theirs[prefix + name]), name


def test_exactly_the_seven_projections_of_each_layer_are_4_bit(
    folders: dict[Scheme, Path],
) -> None:
    network = language(opened(folders["nf4"]), CPU)
    layers = packed_layers(network)
    assert {name.rpartition(".")[2] for name in layers} == FUSED.keys()
    assert sum(len(FUSED[name.rpartition(".")[2]]) for name in layers) == 7 * published.LAYERS
    others = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    assert {type(m) for m in others} == {UnpackingLinear4bit, nn.Linear, nn.Embedding}
    assert len(others) == len(layers) + 2  # embeddings and head


def test_packing_is_nf4_with_double_quantisation_of_the_merged_float16(
    source: Path, folders: dict[Scheme, Path]
) -> None:
    theirs = merged(source)
    for name, layer in packed_layers(language(opened(folders["nf4"]), CPU)).items():
        state, weight = layer.weight.quant_state, theirs[f"language.{name}.weight"]
        assert (state.quant_type, state.blocksize, state.nested) == ("nf4", 64, True)
        assert state.dtype == torch.float16
        unpacked = dequantize_4bit(layer.weight.data, state).float()
        error = (unpacked - weight).norm() / weight.norm()
        assert 0.05 < error < 0.13, name  # 9 % for Gaussian weights


def test_what_is_not_packed_is_the_merged_float16(
    source: Path, folders: dict[Scheme, Path]
) -> None:
    network, theirs = language(opened(folders["nf4"]), CPU), merged(source)
    computed_in = {"norm.weight": torch.float32, "lm_head.weight": torch.float32}  # on a CPU
    for name, dtype in {"embed_tokens.weight": torch.float16, **computed_in}.items():
        weight = network.state_dict()[name]
        assert weight.dtype == dtype
        assert torch.equal(weight.float(), theirs[f"language.{name}"].half().float())
    assert network.embed(torch.tensor([1])).dtype == network.dtype == torch.float32


def test_a_network_is_ready_to_use(folders: dict[Scheme, Path]) -> None:
    network = language(opened(folders["nf4"]), CPU)
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())
    assert torch.isfinite(logits(network)).all()


def test_the_device_decides_what_is_computed_in(folders: dict[Scheme, Path]) -> None:
    vision = VisionEncoder(published.VISION)
    half = module(opened(folders["nf4"]), vision, "vision.", dtype=torch.float16, device=CPU)
    assert {weight.dtype for weight in half.parameters()} == {torch.float16}


FRESH = """
import json, sys
from pathlib import Path
from tests.inference.weights.test_load import seen
print(json.dumps(seen(Path(sys.argv[1]))))
"""


def seen(folder: Path) -> dict[str, str]:
    """SHA-256 of every tensor of the loaded language model, then of its logits."""
    network = language(opened(folder), CPU)
    # state_dict() first: after a pass bitsandbytes' CPU kernels may have repacked the weights.
    content = dict(network.state_dict())
    hashes = {name: digest(tensor) for name, tensor in content.items()}
    return hashes | {"logits": digest(logits(network))}


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()


@pytest.mark.parametrize("scheme", ["none", "nf4"])
def test_a_fresh_process_loads_the_same_bits(folders: dict[Scheme, Path], scheme: Scheme) -> None:
    here = seen(folders[scheme])
    found = opened(folders[scheme])
    if scheme == "nf4":  # stored as they are; the rest is widened to float32
        for name in packed_layers(language(found, CPU)):
            stored = found.read(f"language.{name}.weight")
            assert here[f"{name}.weight"] == digest(stored)
    ended = subprocess.run(
        [sys.executable, "-c", FRESH, folders[scheme]], check=True, capture_output=True, text=True
    )
    assert json.loads(ended.stdout.splitlines()[-1]) == here


def test_a_network_of_another_shape_is_named(folders: dict[Scheme, Path]) -> None:
    deeper = VisionEncoder(dataclasses.replace(published.VISION, depth=3))
    with pytest.raises(ModelUnavailable, match=r"trunk\.blocks\.2\.attn\.proj\.bias is missing"):
        module(opened(folders["none"]), deeper, "vision.", dtype=torch.float32, device=CPU)


def test_a_packed_layer_of_another_shape_is_named(folders: dict[Scheme, Path]) -> None:
    found = opened(folders["nf4"])
    sizes = found.config["language"] | {"intermediate_size": 192}
    config = dict(found.config) | {"language": sizes}
    other = dataclasses.replace(
        found, manifest=found.manifest.model_copy(update={"config": config})
    )
    with pytest.raises(ModelUnavailable, match=r"gate_up_proj\.weight is \(256, 64\), not \(384,"):
        language(other, CPU)


def test_loading_asks_no_network(folders: dict[Scheme, Path]) -> None:
    """In a network namespace without any interface but a dead loopback."""
    command = ["unshare", "--map-root-user", "--net", sys.executable, "-c", FRESH]
    if subprocess.run([*command[:3], "true"], check=False).returncode:
        pytest.skip("user namespaces are forbidden here")
    subprocess.run([*command, folders["nf4"]], check=True, capture_output=True)
