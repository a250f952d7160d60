"""The guard: mixed installs, made of real folders on the path of a process of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
PACKAGES = ("dicom_node", "inference", "worker")
STRANGER = "raise SystemExit('the stranger ran')\n"

# -S: neither the editable install of this repository nor anything else but what we name. The
# libraries come last, as they would from a folder that holds them all.
RUN = """
import sys
sys.path[:0] = sys.argv[1].split(":")
sys.argv[:] = ["dicom-node", *sys.argv[2:]]
from dicom_node.cli import main
main()
"""


def dicom_node(*path: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ours as it is found on ``path``."""
    places = ":".join(map(str, (*path, sysconfig.get_path("purelib"))))
    return subprocess.run(
        [sys.executable, "-S", "-c", RUN, places, command],
        cwd=path[0],
        env={"DICOM_NODE_DATABASE__URL": "nonsense", "DICOM_NODE_BROKER__URL": "memory://"},
        capture_output=True,
        text=True,
        check=False,
    )


def record(site: Path, distribution: str, *packages: str) -> None:
    """What pip writes down about an installed distribution."""
    information = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    information.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
    (information / "METADATA").write_text(metadata)
    files = "".join(f"{package}/__init__.py,,\n" for package in packages)
    (information / "RECORD").write_text(files)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder in which only dicom-node is installed."""
    made = tmp_path / "site"
    for package in PACKAGES:
        unneeded = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(REPOSITORY / package, made / package, ignore=unneeded)
    record(made, "dicom-node", *PACKAGES)
    return made


def theirs_came_second(site: Path, elsewhere: Path) -> list[Path]:
    """Pip overwrote our file with theirs."""
    (site / "inference" / "__init__.py").write_text(STRANGER)
    record(site, "inference", "inference")
    return [site]


def ours_came_second(site: Path, elsewhere: Path) -> list[Path]:
    """Pip overwrote their file with ours; their other files lie among ours."""
    (site / "worker" / "theirs.py").write_text(STRANGER)
    record(site, "worker", "worker")
    return [site]


def theirs_was_removed(site: Path, elsewhere: Path) -> list[Path]:
    """Removing theirs took our file along: a namespace package is left, which half works."""
    (site / "inference" / "__init__.py").unlink()
    return [site]


def theirs_stands_before_ours(site: Path, elsewhere: Path) -> list[Path]:
    """Another folder of the path has a package of that name."""
    (elsewhere / "worker").mkdir(parents=True)
    (elsewhere / "worker" / "__init__.py").write_text(STRANGER)
    return [elsewhere, site]


MIXED: dict[Callable[[Path, Path], list[Path]], str] = {
    theirs_came_second: "the package inference here is not (only) dicom-node's but inference's",
    ours_came_second: "the package worker here is not (only) dicom-node's but worker's",
    theirs_was_removed: "the package inference here is not (only) dicom-node's but nobody's",
    theirs_stands_before_ours: "the package worker here is not (only) dicom-node's but ",
}


@pytest.mark.parametrize("mix", MIXED, ids=lambda mix: mix.__name__)
def test_a_mixed_install_is_refused_in_one_line_before_anything_of_theirs_runs(
    site: Path, tmp_path: Path, mix: Callable[[Path, Path], list[Path]]
) -> None:
    path = mix(site, tmp_path / "elsewhere")
    done = dicom_node(*path, command="serve")
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"dicom-node: {MIXED[mix]}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "work", "doctor"])
def test_every_command_that_runs_processes_asks_the_guard(
    site: Path, tmp_path: Path, command: str
) -> None:
    path = theirs_came_second(site, tmp_path / "elsewhere")
    done = dicom_node(*path, command=command)
    assert done.stderr.startswith(f"dicom-node: {MIXED[theirs_came_second]}")


def test_an_install_of_ours_alone_passes(site: Path) -> None:
    done = dicom_node(site, command="serve")  # and goes on to the next fault
    assert done.stderr.startswith("dicom-node: database.url: not a database URL"), done.stderr


def test_an_editable_install_passes() -> None:
    done = dicom_node(REPOSITORY, command="serve")
    assert done.stderr.startswith("dicom-node: database.url: not a database URL"), done.stderr
