"""Models are found by name among the installed entry points."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from inference import models
from inference.findings import Algorithm, ModelUnavailable

PLUG_IN = '''
class Model:
    """A plug-in as a third party would write it."""

    def __init__(self, path, device):
        from inference.findings import Algorithm
        self.algorithm = Algorithm(
            name="Other", version=device, manufacturer=str(path), digest="0" * 64
        )
        self.device = device
        self.slots = 1

    @classmethod
    def load(cls, path, *, device, options):
        return cls(path, device)

    def accepts(self, header): ...
    def read(self, images, history): ...
    def embed_text(self, text): ...
    def embed_image(self, image): ...
    def learn(self, texts): ...
    def close(self): ...


class Half:
    """Forgets what a model must do."""

    @classmethod
    def load(cls, path, *, device, options):
        return cls()
'''


@pytest.fixture
def plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a distribution with one good and three broken models."""
    (tmp_path / "other_model.py").write_text(PLUG_IN)
    information = tmp_path / "other_model-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: other-model\nVersion: 1.0\n"
    )
    (information / "entry_points.txt").write_text(
        "[dicom_node.models]\n"
        "other = other_model:Model\n"
        "half = other_model:Half\n"
        "misspelt = other_model:Modle\n"
        "absent = no_such_module:Model\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "other_model", raising=False)


@pytest.mark.usefixtures("plug_ins")
def test_an_installed_model_is_found_and_loaded() -> None:
    model = models.load("other", path=Path("weights"), device="cpu")
    wanted = Algorithm(name="Other", version="cpu", manufacturer="weights", digest="0" * 64)
    assert model.algorithm == wanted
    assert "other" in models.names()


@pytest.mark.usefixtures("plug_ins")
def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelUnavailable, match=r"'ohter'.*absent.*half.*misspelt.*other"):
        models.load("ohter", path=None)


@pytest.mark.usefixtures("plug_ins")
@pytest.mark.parametrize("name", ["misspelt", "absent", "half"])
def test_a_broken_plug_in_is_named(name: str) -> None:
    with pytest.raises(ModelUnavailable, match=name):
        models.load(name, path=None)


@pytest.mark.parametrize("name", ["demo", "llava-rad"])
def test_our_own_models_come_through_the_same_door(name: str) -> None:
    assert name in models.names()
