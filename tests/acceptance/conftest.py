"""For the acceptance tests: real processes, real sockets, short by default, full with --slow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.destination import destination
from tests.acceptance.running_node import RunningNode, running
from tests.pacs import Pacs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What we kill leaves sockets to the garbage collector: here that is no error."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


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


@pytest.fixture(scope="package")
def pacs() -> Iterator[Pacs]:
    """Where the drafts go."""
    with destination() as made:
        yield made


@pytest.fixture(scope="package")
def node(pacs: Pacs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """One node for all tests that can share one; who takes it finds it healthy and idle."""
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
