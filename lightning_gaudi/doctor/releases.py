"""Which torch each release of the Gaudi software goes with (docs.habana.ai, "Support Matrix")."""

from __future__ import annotations

TORCH_OF_RELEASE: dict[str, str] = {
    "1.17": "2.3",
    "1.18": "2.4",
    "1.19": "2.5",
    "1.20": "2.6",
    "1.21": "2.6",
    "1.22": "2.7",
    "1.23": "2.9",
    "1.24.0": "2.10",
    "1.24": "2.11",
}
"""Major and minor of torch, by release; the longest name that fits counts."""

OLDEST_RELEASE = "1.20"
FIRST_EAGER_RELEASE = (1, 21)
OLDEST_TORCH = "2.6"
OLDEST_TORCH_FOR_EMULATOR = "2.10"
OLDEST_LIGHTNING = "2.5.6"
OLDEST_TRANSFORMERS = "4.56"
OLDEST_DIFFUSERS = "0.35"
OLDEST_PYTHON = "3.10"


def torch_for(bridge: str) -> str | None:
    """Torch's major.minor for a version of the Gaudi software; None for one not known here."""
    parts = bridge.split(".")
    for length in (3, 2):
        torch = TORCH_OF_RELEASE.get(".".join(parts[:length]))
        if torch is not None:
            return torch
    return None


def is_habanas(torch: str) -> bool:
    """Whether a version of torch is a build of Habana's.

    Releases call themselves ``2.6.0+hpu_1.21.0-555.git1234567``, older ones ``2.4.0a0+git1234567``.
    """
    build = torch.partition("+")[2]
    return "hpu" in build or (build.startswith("git") and "a0" in torch)
