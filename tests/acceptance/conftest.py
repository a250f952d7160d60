"""For the acceptance tests: real processes, real sockets, short by default, full with --slow."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.running_node import RunningNode, running
from tests.pacs import Pacs


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """The full form (minutes to an hour) instead of the short one that runs in CI."""
    return bool(request.config.getoption("--slow"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The hospital's data; no file of it may be copied into the repository."""
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: real and hostile objects can't be sent")
    return folder


@pytest.fixture(scope="module")
def pacs() -> Iterator[Pacs]:
    """The destination: stores, lists and remembers."""
    made = Pacs()
    try:
        yield made
    finally:
        made.stop()
        # pynetdicom leaves the socket of a broken association to the garbage collector, which would
        # complain in somebody else's test.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


@pytest.fixture(scope="module")
def node(pacs: Pacs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """One node for all tests of a module."""
    home = tmp_path_factory.mktemp("node")
    with running(home, pacs_title="PACS", pacs_port=pacs.port) as started:
        yield started


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a measured figure past pytest's capture, so that a log shows it."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def tell(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n    {text}", flush=True)

    return tell
