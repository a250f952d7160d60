"""Published weight files, read safely and one tensor at a time.

A checkpoint is one file or the shards of an index, as ``.safetensors`` or as torch's pickles
(``.bin``, ``.pt``). Pickles are read with ``weights_only=True`` and a short allow-list, never
unpickled in full. Only one shard is open at a time and its tensors are mapped, not loaded, so that
13 GB of shards need little memory.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy._core.multiarray import scalar
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from inference.findings import ModelUnavailable

State = dict[str, Tensor]

# The vision checkpoint is a training checkpoint: its optimiser state holds NumPy scalars (learning
# rates), which weights_only refuses. These names and no others, the last also as NumPy 1 wrote it.
_ALLOWED: list[Any] = [
    np.dtype,
    np.dtypes.Float64DType,
    scalar,
    (scalar, "numpy.core.multiarray.scalar"),
]


class Checkpoint:
    """The tensors of a published checkpoint: all names and shapes, and one tensor on demand."""

    def __init__(
        self,
        shards: Mapping[Path, set[str] | None],
        *,
        ignore: Sequence[str] = (),
        index: Path | None = None,
    ) -> None:
        """``shards``: and which tensors the index says each holds, if there is one."""
        self.files = (*shards, index) if index else tuple(shards)
        self._ignore = tuple(ignore)
        self._open: tuple[Path, State] | None = None
        self._places: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path, named in shards.items():
            self._list(path, named)

    @classmethod
    def find(cls, folder: Path, *stems: str, ignore: Sequence[str] = ()) -> Self:
        """Find the first of ``folder/stem`` as one file or index, safetensors before pickles.

        ``ignore``: regular expressions; names in which one is found are left out.

        Raises:
            ModelUnavailable: there is no such file, a shard is missing, damaged or holds code, or
                index and shards disagree.
        """
        for suffix, stem in product((".safetensors", ".bin", ".pt"), stems):
            path = folder / f"{stem}{suffix}"
            index = folder / f"{path.name}.index.json"
            if path.exists():
                return cls({path: None}, ignore=ignore)
            if index.exists():
                return cls(_shards(index), ignore=ignore, index=index)
        raise ModelUnavailable(
            f"{folder} holds no {' or '.join(stems)} (.safetensors, .bin or .pt): download it"
        )

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor that is not ignored."""
        return self._shapes

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""
        return self._shard(self._places[name])[name].clone()

    def _list(self, path: Path, named: set[str] | None) -> None:
        held = {k: v for k, v in self._shard(path).items() if not self._ignored(k)}
        if named is not None:
            wanted = {name for name in named if not self._ignored(name)}
            _check_index(path, wanted, set(held))
        self._places |= dict.fromkeys(held, path)
        self._shapes |= {name: tuple(tensor.shape) for name, tensor in held.items()}

    def _ignored(self, name: str) -> bool:
        return any(re.search(pattern, name) for pattern in self._ignore)

    def _shard(self, path: Path) -> State:
        """The tensors of one shard; the one before is closed first."""
        if self._open is None or self._open[0] != path:
            self._open = None
            self._open = path, _mapped(path)
        return self._open[1]


def _shards(index: Path) -> dict[Path, set[str] | None]:
    """Which tensors the index says each shard holds."""
    places = setting(index, "weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ModelUnavailable(f"{index} is no index of shards: download it again")
    named: dict[str, set[str]] = {}
    for name, file in places.items():
        named.setdefault(file, set()).add(name)
    missing = [file for file in sorted(named) if not (index.parent / file).is_file()]
    if missing:
        raise ModelUnavailable(
            f"{index.parent} lacks {', '.join(missing)}, which {index.name} names: download it"
        )
    return {index.parent / file: named[file] for file in sorted(named)}


def _check_index(path: Path, named: set[str], held: set[str]) -> None:
    faults = [f"lacks {name}" for name in named - held]
    faults += [f"holds {name}, which the index does not name" for name in held - named]
    if faults:
        said = "; ".join(sorted(faults)[:10])
        raise ModelUnavailable(f"{path} {said}: download it and its index again")


def _mapped(path: Path) -> State:
    with _damage(path):
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelUnavailable(f"{path} holds something else than tensors by name")
    return state


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Map what a damaged file raises."""
    try:
        yield
    except FileNotFoundError as error:
        raise ModelUnavailable(f"{path} is missing: download it") from error
    except (OSError, EOFError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelUnavailable(f"{path} is damaged, download it again ({reason})") from error
    except pickle.UnpicklingError as error:
        raise ModelUnavailable(f"{path} is damaged or holds code, refused") from error


def _unpickled(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(1) == pickle.PROTO:
            raise ModelUnavailable(f"{path} is a bare pickle, which may hold code: refused")
    with torch.serialization.safe_globals(_ALLOWED):
        code = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if code:
            raise ModelUnavailable(f"{path} holds code, refused: {', '.join(sorted(code))}")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


# --- configuration files ----------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """Read one of the published configuration files.

    Raises:
        ModelUnavailable: it is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelUnavailable(f"{path} is missing: download it") from error
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{path} can't be read, download it again ({error})") from error
    if not isinstance(content, dict):
        raise ModelUnavailable(f"{path} is no JSON object: download it again")
    return content


def setting(path: Path, *keys: str) -> Any:
    """One value of a configuration file, below nested keys.

    Raises:
        ModelUnavailable: it is not there.
    """
    value: Any = read_json(path)
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise ModelUnavailable(f"{path} lacks {'.'.join(keys)}: download it again")
        value = value[key]
    return value


def expect(path: Path, expected: Mapping[str, Any], *keys: str) -> None:
    """Refuse a configuration that asks for something else than what is done here.

    What is not set counts as expected. ``keys``: where in the file to look.

    Raises:
        ModelUnavailable: naming the setting.
    """
    found = setting(path, *keys)
    for key, value in expected.items():
        if found.get(key, value) != value:
            raise ModelUnavailable(f"{path}: {key} is {found[key]!r}, only {value!r} is known here")
