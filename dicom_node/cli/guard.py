"""Refuse to run when another distribution has overwritten one of our packages.

``inference`` and ``worker`` are common names: pip silently overwrites one distribution's files with
another's. The guard looks without importing (architecture 8).
"""

from __future__ import annotations

from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

from dicom_node.errors import ConfigurationError

PACKAGES = ("inference", "worker")


def check() -> None:
    """Raise ConfigurationError unless our packages are ours alone."""
    home = Path(__file__).parents[2]
    owners = packages_distributions()
    for package in PACKAGES:
        spec = find_spec(package)
        origin = Path(spec.origin).parent.parent if spec and spec.origin else None
        strangers = set(owners.get(package, ())) - {"dicom-node"}
        if origin != home or strangers:
            named = ", ".join(sorted(strangers)) or (str(origin) if origin else "nobody")
            raise ConfigurationError(
                f"the package {package} here is not (only) dicom-node's but {named}'s: "
                "install dicom-node into an environment of its own"
            )
