"""Which versions are installed. Read from metadata and files; nothing is imported.

Importing torch may load the Gaudi software, which may hang where a card is in a bad state; reading
``torch/version.py`` cannot.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import re
import sys
from dataclasses import dataclass
from pathlib import Path

BRIDGE = "habana-torch-plugin"
DISTRIBUTIONS = (
    BRIDGE,
    "diffusers",
    "jsonargparse",
    "lightning",
    "lightning-gaudi",
    "lightning-habana",
    "optimum-habana",
    "pytorch-lightning",
    "torch",
    "transformers",
)
"""What is looked for, by the names that pip knows."""

_VERSION_LINE = re.compile(r"""^__version__(?:\s*:\s*\w+)?\s*=\s*['"]([^'"]+)['"]""", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What is installed for this Python.

    Attributes:
        python: Python's version.
        executable: Where it is.
        versions: Versions by distribution; what is not installed is not in it.
        torch_file: Where torch is; None without one.
        bridge_file: Where the package ``habana_frameworks`` is; None without one.
        backends: Entry points of the group ``torch.backends``, which ``import torch`` calls.
    """

    python: str
    executable: str
    versions: dict[str, str]
    torch_file: str | None
    bridge_file: str | None
    backends: tuple[str, ...]

    @property
    def torch(self) -> str | None:
        """Torch's version, with its build: ``"2.6.0+hpu_1.21.0-555.git1234567"``."""
        return self.versions.get("torch")

    @property
    def bridge(self) -> str | None:
        """The version of the Gaudi software: ``"1.21.0.555"``."""
        return self.versions.get(BRIDGE)


def read_installed() -> Installed:
    """Look at what is installed."""
    versions: dict[str, str] = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    torch_file = _place_of("torch")
    if torch_file is not None and (build := _torch_build(Path(torch_file))):
        versions["torch"] = build
    backends = importlib.metadata.entry_points(group="torch.backends")
    return Installed(
        python=".".join(map(str, sys.version_info[:3])),
        executable=sys.executable,
        versions=versions,
        torch_file=torch_file,
        bridge_file=_place_of("habana_frameworks"),
        backends=tuple(sorted({entry.name for entry in backends})),
    )


def _place_of(package: str) -> str | None:
    # By path only: the emulated HPU's own finder must not answer for the real software.
    spec = importlib.machinery.PathFinder.find_spec(package)
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ())
    return places[0] if places else spec.origin


def _torch_build(folder: Path) -> str | None:
    """The version that torch gives itself, which names the build where metadata may not."""
    try:
        found = _VERSION_LINE.search((folder / "version.py").read_text())
    except OSError:
        return None
    return None if found is None else found[1]
