"""What a site must bring: which published files, from where, under which licence.

No weights are ever shipped, not even prepared ones: their licences forbid it (llava-rad.md 9). A
site fetches them itself with ``pull``, the one function that goes to the network, or copies them by
hand into the same folders. Either way ``missing`` says what is not there yet.

Revisions are pinned. Of most repositories only the beginning of the commit's hash is known to us;
``pull`` finds the one commit that begins so and writes it down in ``PULLED.json``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from inference.findings import ModelUnavailable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB = "https://huggingface.co"
RECORD = "PULLED.json"
FULL_HASH = 40  # hexadecimal digits of a git commit

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """One repository of the model hub, and what of it we need."""

    repo: str  #: "owner/name"
    revision: str | None  #: commit or its beginning; None: none is known to us, main's newest
    folder: str  #: where its files go, relative to the source folder
    #: Each: the published name or pattern, then others that do as well (converted by a site).
    files: tuple[tuple[str, ...], ...]
    extras: tuple[str, ...] = ()  #: fetched where published, not missed where not
    base: bool = False  #: the base language model, which ``--base`` may name
    found_as: str = ""  #: pattern of a folder that does as well as ``folder``
    purpose: str
    licence: str  #: its name
    terms: str  #: what it means for a site, in one line
    size: str = "not known here"  #: in words, for the question before the download

    @property
    def page(self) -> str:
        """Where its terms stand and are accepted."""
        return f"{HUB}/{self.repo}"

    @property
    def wanted(self) -> tuple[str, ...]:
        """Patterns of what is fetched."""
        return (*(names[0] for names in self.files), *self.extras)


def terms(needs: Sequence[Needed]) -> str:
    """What a prepared model says of the licences of its sources, which hold for it as well."""
    said = [f"{needed.repo}: {needed.licence} ({needed.terms})" for needed in needs]
    return "; ".join(said) or "part of dicom-node"


_LLAMA_WEIGHTS = (
    ("pytorch_model.bin.index.json", "model.safetensors.index.json"),
    ("pytorch_model-*.bin", "model-*.safetensors"),
)
_ONE_FILE = ("pytorch_model.bin", "model.safetensors")  # needs no index

#: Files: llava-rad.md 1. Revisions: the ones seen there. BiomedBERT's vocabulary and configuration
#: are not in LLaVA-Rad's repository; upstream takes them from the hub as well.
LLAVA_RAD = (
    Needed(
        repo="microsoft/llava-rad",
        revision="dcdbc6ca",
        folder="llava-rad",
        files=(
            ("config.json",),
            ("adapter_config.json",),
            ("adapter_model.bin", "adapter_model.safetensors"),
            ("non_lora_trainables.bin", "non_lora_trainables.safetensors"),
            ("biomedclipcxr_518.json",),
            ("biomedclipcxr_518_checkpoint.pt", "biomedclipcxr_518_checkpoint.safetensors"),
        ),
        extras=("LICENSE*", "README.md"),
        purpose="adapter, projector, image and text encoder",
        licence="Microsoft Research licence terms (file LICENSE of the repository)",
        terms="non-commercial research only; not for clinical care; no redistribution, "
        "not even of prepared weights; not to be offered as a hosted service",
    ),
    Needed(
        repo="lmsys/vicuna-7b-v1.5",
        revision="3321f76e",
        folder="vicuna-7b-v1.5",
        files=(
            ("config.json",),
            ("tokenizer.model",),
            *((*names, *_ONE_FILE) for names in _LLAMA_WEIGHTS),
        ),
        extras=("README.md",),
        base=True,
        found_as="vicuna-*",
        purpose="base language model",
        licence="Llama 2 Community License Agreement",
        terms="Meta's conditions and acceptable use policy apply to everything made from it",
        size="about 13.5 GB",
    ),
    Needed(
        repo="microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        revision=None,
        folder="llava-rad/BiomedNLP-BiomedBERT-base-uncased-abstract",
        files=(("config.json",), ("vocab.txt",)),
        extras=("tokenizer_config.json", "README.md"),
        purpose="configuration and vocabulary of the text encoder (no weights of it)",
        licence="MIT",
        terms="free to use; keep its notice",
        size="under 1 MB",
    ),
)

#: Files: cxr-llava.md, Files. Its remote code is neither fetched nor run, and of the two copies of
#: its weights only the safetensors.
CXR_LLAVA = (
    Needed(
        repo="ECOFRI/CXR-LLAVA-v2",
        revision="b2224786",
        folder="cxr-llava-v2",
        files=(
            ("config.json",),
            ("tokenizer.model",),
            ("tokenizer_config.json",),
            *((*reversed(names), *reversed(_ONE_FILE)) for names in _LLAMA_WEIGHTS),
        ),
        extras=("LICENSE*", "README.md", "*_tokens*.json", "generation_config.json"),
        purpose="the whole model",
        licence="CC BY-NC 4.0, and the Llama 2 Community License Agreement for its language model",
        terms="non-commercial use only; name its authors",
        size="about 14 GB",
    ),
)


# --- what is there ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Missing:
    """A file that a site must still bring."""

    needed: Needed
    name: str  #: as published
    place: Path  #: the folder it belongs in


def missing(needs: Sequence[Needed], source: Path, base: Path | None = None) -> list[Missing]:
    """Say which files are not there.

    ``source``: the published model folder itself, or the folder around it; ``base``: the base
    language model's folder, where it lies elsewhere. Shards that only an index names are looked
    for when the weights are read.
    """
    return [
        Missing(needed, names[0], place)
        for needed in needs
        for place in [_place(needed, source, base)]
        for names in needed.files
        if not any(any(place.glob(name)) for name in names)
    ]


def _place(needed: Needed, source: Path, base: Path | None) -> Path:
    """The folder that holds what is needed, or ought to."""
    if needed.base and base is not None:
        return base
    if needed.base or not (source / "config.json").is_file():
        found = sorted(p for p in source.glob(needed.found_as or needed.folder) if p.is_dir())
        return found[0] if len(found) == 1 else source / needed.folder
    return source.joinpath(*Path(needed.folder).parts[1:])  # the published folder itself


# --- pull -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What one repository offers of what we need, at one commit."""

    needed: Needed
    commit: str
    sizes: Mapping[str, int]  #: file -> bytes

    def absent(self, output: Path) -> dict[str, int]:
        """Files, with their sizes, that are not yet whole under ``output``."""
        folder = output / self.needed.folder
        return {name: size for name, size in self.sizes.items() if _size(folder / name) != size}


def pull(needs: Sequence[Needed], output: Path, say: Say) -> None:
    """Fetch what is needed into ``output``; what is already there stays.

    ``say``: told in a line what happens next.

    Raises:
        ModelUnavailable: offline, refused, gone, disc full; says which and what to do.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    listings = [_listing(api, needed) for needed in needs]
    _check_room(listings, output)
    for listing in listings:
        absent = listing.absent(output)
        say(
            f"{listing.needed.repo} at {listing.commit}: {len(absent)} of {len(listing.sizes)} "
            f"files to fetch, {gigabytes(sum(absent.values()))}"
        )
        _fetch(listing, output)


def gigabytes(size: int) -> str:
    """``13.48 GB`` of bytes."""
    return f"{size / 1e9:.2f} GB"


def _listing(api: HfApi, needed: Needed) -> Listing:
    """Look a repository up; nothing is fetched yet."""
    with _hub_errors(needed):
        commit = _commit(api, needed)
        found = api.model_info(needed.repo, revision=commit, files_metadata=True)
    sizes = {
        one.rfilename: one.size or 0
        for one in found.siblings or ()
        if any(fnmatch(one.rfilename, pattern) for pattern in needed.wanted)
    }
    for names in needed.files:
        if not any(fnmatch(name, names[0]) for name in sizes):
            raise ModelUnavailable(f"{needed.repo} at {found.sha} holds no {names[0]}")
    return Listing(needed=needed, commit=found.sha or commit, sizes=sizes)


def _commit(api: HfApi, needed: Needed) -> str:
    """The full hash of the pinned commit, or the branch where none is pinned."""
    if needed.revision is None:
        return "main"
    if len(needed.revision) == FULL_HASH:
        return needed.revision
    commits = [one.commit_id for one in api.list_repo_commits(needed.repo)]
    found = [commit for commit in commits if commit.startswith(needed.revision)]
    if len(found) != 1:
        raise ModelUnavailable(
            f"{needed.repo}: {len(found) or 'none'} of its {len(commits)} commits begins with "
            f"{needed.revision}, the revision known here; copy its files by hand (docs/models.md)"
        )
    return found[0]


def _check_room(listings: Sequence[Listing], output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(output).free
    except OSError as error:
        raise ModelUnavailable(f"{output} can't be used: {error.strerror}") from error
    wanted = sum(sum(listing.absent(output).values()) for listing in listings)
    if wanted > free:
        raise ModelUnavailable(
            f"{output} has {gigabytes(free)} free and {gigabytes(wanted)} are to be fetched: "
            "choose another --output"
        )


def _fetch(listing: Listing, output: Path) -> None:
    from huggingface_hub import snapshot_download

    needed = listing.needed
    folder = output / needed.folder
    with _hub_errors(needed):
        for name in listing.absent(output):  # half a file: the library would think it whole
            (folder / name).unlink(missing_ok=True)
        snapshot_download(
            needed.repo,
            revision=listing.commit,
            local_dir=folder,
            allow_patterns=sorted(listing.sizes),
        )
    # Asked again, because the library hands back a half folder when the hub goes away meanwhile.
    if absent := listing.absent(output):
        raise ModelUnavailable(
            f"{needed.repo}: {', '.join(sorted(absent))} did not come whole; pull again"
        )
    record = {"repo": needed.repo, "commit": listing.commit, "files": dict(listing.sizes)}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


@contextmanager
def _hub_errors(needed: Needed) -> Iterator[None]:
    """Map what the hub's client raises.

    Raises:
        ModelUnavailable: one line, with what to do.
    """
    from httpx2 import HTTPError  # what huggingface_hub speaks through, and raises as it comes
    from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ModelUnavailable(
            "HF_HUB_OFFLINE is set, so nothing is fetched: unset it, or copy the files by hand"
        ) from error
    except (HTTPError, EntryNotFoundError, OSError) as error:
        raise ModelUnavailable(f"{needed.repo}: {_reason(needed, error)}") from error


def _reason(needed: Needed, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, OSError) and error.errno is not None:  # ours, not the hub's
        return f"{error.strerror} ({error.filename or 'while writing'}); then pull again"
    reasons: dict[type[Exception], str] = {
        errors.GatedRepoError: f"it is gated: accept its terms on {needed.page} and set HF_TOKEN "
        "to a token of that account",
        errors.RepositoryNotFoundError: "the hub knows no such repository, or shows it only to "
        f"its members: look at {needed.page}, set HF_TOKEN if you are one",
        errors.RevisionNotFoundError: f"the hub has no commit {needed.revision} of it; copy its "
        "files by hand (docs/models.md)",
        errors.HfHubHTTPError: f"the hub refused ({type(error).__name__}); try again later",
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return reason
    return f"the hub can't be reached ({type(error).__name__}); check the network or copy by hand"
