"""The command's border: an expected failure is one line and exit code 1, wrong usage is 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dicom_node import cli
from tests.worker.conftest import install
from tests.worker.rule_model import RuleModel

Command = Callable[..., int]


@pytest.fixture
def dicom_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """``dicom_node(*arguments, **settings)``: run a command in an empty folder; its exit code."""

    def run(*arguments: str, **settings: str) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["dicom-node", *arguments])
        for name, value in settings.items():
            monkeypatch.setenv(f"DICOM_NODE_{name}", value)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


@pytest.mark.parametrize(
    ("arguments", "environment", "line"),
    [
        pytest.param(
            ("studies",),
            {"NODE__PROT": "1"},
            "unknown key node.prot; did you mean node.port?",
            id="setting",
        ),
        pytest.param(
            ("search", "effusion"),
            {"MODEL__NAME": "nonesuch", "DATABASE__URL": "postgresql+psycopg://h/n"},
            "no model is called 'nonesuch'",
            id="model",
        ),
        pytest.param(("studies",), {}, "no database in ", id="nothing-ever-ran-here"),
        pytest.param(("echo", "nobody"), {}, "no peer is named nobody", id="peer"),
    ],
)
def test_an_expected_failure_is_one_line_and_exit_code_1(
    dicom_node: Command,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    environment: dict[str, str],
    line: str,
) -> None:
    assert dicom_node(*arguments, **environment) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"dicom-node: {line}")
    assert said.err.count("\n") == 1
    assert said.out == ""


class ImagesOnly(RuleModel):
    """A model without a text tower."""

    knows_texts = False


def test_a_search_for_words_with_a_model_that_places_none_is_one_line(
    dicom_node: Command,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(tmp_path / "site", "images-only", ImagesOnly)
    monkeypatch.syspath_prepend(tmp_path / "site")
    settings = {"MODEL__NAME": "images-only", "DATABASE__URL": "postgresql+psycopg://h/n"}
    assert dicom_node("search", "effusion", **settings) == 1
    said = capsys.readouterr()
    assert said.err == "dicom-node: Rule places no texts: search by --image or --study\n"
    assert said.out == ""


@pytest.mark.parametrize("arguments", [("nonsense",), ("study",), ("search",), ("echo", "a", "b")])
def test_wrong_usage_is_exit_code_2(
    dicom_node: Command, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert dicom_node(*arguments) == 2
    assert capsys.readouterr().out == ""
