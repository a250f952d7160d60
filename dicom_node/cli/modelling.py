"""models pull, prepare, verify, list, trace, demo: bringing a model's weights to this machine.

Each verb imports what it needs when it runs: torch takes seconds, and ``pull`` must reach the
network, which everything else here is kept from.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich import filesize

from dicom_node.cli import tables
from dicom_node.config import Settings
from dicom_node.errors import NodeError, NotFound

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

    from inference.hub import Needed
    from inference.models import Preparable

Scheme = Literal["nf4", "none"]


# --- pull -------------------------------------------------------------------------------------


def pull(name: str, output: Path, *, accepted: bool) -> None:
    """Say what will be fetched under which terms; fetch it when they were accepted."""
    # The one verb that may go online. Read once, at the first import of the hub's client; what the
    # administrator set stays.
    os.environ.setdefault("HF_HUB_OFFLINE", "0")
    # Not its retries: what came of them is ours to say.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from inference import hub, models

    needs = models.preparable(name).needs
    if not needs:
        raise NotFound(f"model {name} comes with dicom-node: there is nothing to pull")
    for needed in needs:
        show_needed(needed)
    if not accepted:
        raise NodeError(
            "nothing was fetched: read these terms; --accept-licence says that your site accepts "
            f"them. By hand: copy the files into the folders named above, under {output}"
        )
    hub.pull(needs, output, say)
    say(f"next: dicom-node models prepare --model {name} --source {output} --output FOLDER")


def say(text: str) -> None:
    """Tell people what happens; stdout is for data."""
    print(text, file=sys.stderr, flush=True)


def show_needed(needed: Needed) -> None:
    """One repository: what, from where, under which licence."""
    files = ", ".join(names[0] for names in needed.files)
    rows = [
        ("from", needed.page),
        ("revision", needed.revision or "the newest (none is known here to pin)"),
        ("into", f"{needed.folder}/"),
        ("for", needed.purpose),
        ("files", files),
        ("size", needed.size),
        ("licence", needed.licence),
        ("terms", needed.terms),
    ]
    tables.show(("repository", needed.repo), rows)
    tables.console.print()


# --- prepare ----------------------------------------------------------------------------------


def prepare(name: str, source: Path, base: Path | None, output: Path, scheme: Scheme) -> None:
    """Turn published folders into one prepared folder."""
    from inference import models

    plug_in = models.preparable(name)
    check_present(plug_in, name, source, base)
    began = time.monotonic()
    digest = _prepared(plug_in, source, base, output, scheme)
    rows = [
        ("model", name),
        ("folder", output),
        ("scheme", scheme),
        ("size", filesize.decimal(sum(p.stat().st_size for p in output.iterdir()))),
        ("seconds", f"{time.monotonic() - began:.1f}"),
        ("peak memory", filesize.decimal(_peak_bytes())),
        ("digest", digest),
    ]
    tables.show(("prepared", ""), rows)
    say(f'next: dicom-node models verify; in dicom-node.toml [model] path = "{output}"')


def _prepared(
    plug_in: Preparable, source: Path, base: Path | None, output: Path, scheme: Scheme
) -> str:
    """Prepare with a progress bar; the digest of the result."""
    from inference.weights import prepare as preparation

    recipe = plug_in.recipe(source, base)
    with progress_bar() as advance:
        manifest = preparation.prepare(recipe, output, quantisation=scheme, progress=advance)
    return manifest.digest


def check_present(plug_in: Preparable, name: str, source: Path, base: Path | None) -> None:
    """Name each file that a site must still bring.

    Raises
    ------
    NotFound
        There is one.
    """
    from inference import hub

    absent = hub.missing(plug_in.needs, source, base)
    for one in absent:
        revision = f" at {one.needed.revision}" if one.needed.revision else ""
        say(
            f"missing: {one.place / one.name}, from {one.needed.page}{revision}, "
            f"licence: {one.needed.licence}"
        )
    if absent:
        raise NotFound(
            f"{len(absent)} files are missing: fetch them with `dicom-node models pull --model "
            f"{name} --output {source}` or copy them by hand"
        )


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """``advance(step, share)``: a bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    terminal = Console(stderr=True)
    with Progress(console=terminal, disable=not terminal.is_terminal) as progress:
        task = progress.add_task("preparing", total=1.0)
        yield lambda step, share: progress.update(task, description=step, completed=share)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


# --- verify -----------------------------------------------------------------------------------


def verify(settings: Settings, name: str | None, path: Path | None, *, as_json: bool) -> None:
    """Check a prepared model here; exit code 1 when something is wrong with it."""
    from inference import selftest

    name = name or settings.model.name
    if path is None and name == settings.model.name and settings.model.path:
        path = Path(settings.model.path)
    found = selftest.run(name, path, device=settings.model.device)
    if as_json:
        checks = [
            {"name": one.name, "passed": one.passed, "text": one.text} for one in found.checks
        ]
        document = {"model": name, "digest": found.digest, "device": found.device, "checks": checks}
        print(json.dumps(document, indent=2))
    else:
        rows = [(one.name, "ok" if one.passed else "FAULT", one.text) for one in found.checks]
        tables.show(("check", "", f"{name} on {found.device}, digest {found.digest}"), rows)
    if faults := [one.name for one in found.checks if not one.passed]:
        raise NodeError(
            f"model {name} failed: {', '.join(faults)}; prepare it again, or set [model] device"
        )


# --- list -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """One plug-in, as ``list`` shows it."""

    name: str
    version: str
    needs: Sequence[Needed]
    fault: str  #: why it can't be used; empty if it can


def show_models(settings: Settings, *, as_json: bool) -> None:
    """The installed models; the configured one with its prepared weights."""
    from inference.models import GROUP

    found = [_installed(entry) for entry in sorted(entry_points(group=GROUP))]
    prepared = _manifest(settings)
    if as_json:
        print(json.dumps(_list_document(settings, found, prepared), indent=2))
        return
    tables.show(
        ("model", "version", "", "weights", "licence"),
        [
            (
                one.name,
                one.version,
                one.fault or ("configured" if one.name == settings.model.name else ""),
                ", ".join(needed.repo for needed in one.needs) or "its own",
                "; ".join(dict.fromkeys(needed.licence for needed in one.needs)),
            )
            for one in found
        ],
    )
    if prepared:
        tables.console.print()
        tables.show(("prepared", ""), list(prepared.items()))


def _installed(entry: EntryPoint) -> Installed:
    from inference import models
    from inference.findings import ModelUnavailable

    version = entry.dist.version if entry.dist else ""
    try:
        needs = getattr(models.find(entry.name), "needs", ())
    except ModelUnavailable as error:
        return Installed(name=entry.name, version=version, needs=(), fault=str(error))
    return Installed(name=entry.name, version=version, needs=needs, fault="")


def _manifest(settings: Settings) -> dict[str, str]:
    """What is prepared in the configured folder; empty where none is configured."""
    from inference.findings import ModelUnavailable
    from inference.weights.artefact import Artefact

    if not settings.model.path:
        return {}
    path = Path(settings.model.path)
    try:
        artefact = Artefact.open(path, model=settings.model.name)
    except ModelUnavailable as error:
        return {"path": str(path), "fault": str(error)}
    return {"path": str(path), "scheme": artefact.scheme, "digest": artefact.digest}


def _list_document(
    settings: Settings, found: Sequence[Installed], prepared: dict[str, str]
) -> dict[str, Any]:
    return {
        "configured": settings.model.name,
        "models": [one.name for one in found],
        "prepared": prepared or None,
        "details": [
            {
                "name": one.name,
                "version": one.version,
                "fault": one.fault or None,
                "needs": [_needed_document(needed) for needed in one.needs],
            }
            for one in found
        ],
    }


def _needed_document(needed: Needed) -> dict[str, Any]:
    return {
        "repo": needed.repo,
        "revision": needed.revision,
        "folder": needed.folder,
        "files": [names[0] for names in needed.files],
        "size": needed.size,
        "licence": needed.licence,
        "terms": needed.terms,
    }


# --- trace ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """What to trace: an image, a text, or both."""

    image: Path | None
    indication: str | None
    text: str | None


def trace(
    name: str, source: Path, base: Path | None, asked: Traced, scheme: Scheme, output: Path
) -> None:
    """Write every stage of one image or text, for comparison with another implementation."""
    from safetensors.torch import save_file

    from inference import models

    plug_in = models.preparable(name)
    check_present(plug_in, name, source, base)
    picture = open_picture(asked.image) if asked.image else None
    with _writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        # Beside the output, because /tmp may be memory and a whole model is large.
        beside = tempfile.TemporaryDirectory(dir=output.parent, prefix=".trace-")
    with beside as folder:
        prepared = Path(folder) / "prepared"
        _prepared(plug_in, source, base, prepared, scheme)
        options = models.Options(slots=1, draft_tokens=0)
        model = models.load(name, path=prepared, device="cpu", options=options)
        assert isinstance(model, models.Preparable)  # its class is
        found = model.trace(picture, asked.indication, asked.text)
    save_file({key: array.contiguous() for key, array in found.arrays.items()}, output)
    print(json.dumps(found.document))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Map what a folder raises that can't be written."""
    try:
        yield
    except OSError as error:
        raise NodeError(f"{path} can't be written: {error.strerror}") from error


def open_picture(path: Path) -> PilImage:
    """A DICOM object by way of ``mimic-jpg-v1``, anything else as it is.

    Raises
    ------
    NotFound
        No such file, or neither of the two.
    """
    from PIL import Image as PillowImage
    from pydicom.misc import is_dicom

    from inference import pixels

    try:
        if is_dicom(path):
            return PillowImage.fromarray(pixels.read(path).pixels)
        picture = PillowImage.open(path)
        picture.load()
    except (OSError, SyntaxError, PillowImage.DecompressionBombError) as error:
        raise NotFound(f"{path}: no DICOM file and no picture ({type(error).__name__})") from error
    return picture


# --- demo -------------------------------------------------------------------------------------


def demo(output: Path | None) -> None:
    """Say what the demo model is; copy its published layout for practice."""
    from inference.demo.model import PREPARED, PUBLISHED

    print(
        "The demo model is a small LLaVA-Rad that was trained on drawn phantoms. It reads phantoms "
        "and nothing else: what it says of a patient means nothing. It shows that the node works."
    )
    training = json.loads((PUBLISHED / "TRAINING.json").read_text(encoding="utf-8"))
    figures = training["figures"]
    read = figures["nf4"]
    rows = [
        ("published layout", PUBLISHED),
        ("prepared", PREPARED),
        ("made", training["made"]),
        ("F1 of its findings", f"{read['f1']} on {read['n']} new phantoms, in 4 bits"),
        ("every finding right", f"{read['exact']:.1%} of them"),
        ("report found by image", f"{figures['image_to_report_top1']:.1%} at the first place"),
    ]
    tables.show(("demo model", ""), rows)
    if output is None:
        return
    if output.exists():
        raise NodeError(f"{output} exists; choose another --output")
    with _writing(output):
        shutil.copytree(PUBLISHED, output)
    say(f"next: dicom-node models prepare --model demo --source {output} --output FOLDER")
