"""What is said once where a name of ``lightning-habana`` is used."""

from __future__ import annotations

from lightning_utilities.core.rank_zero import rank_zero_info

_hinted: set[str] = set()


def hint(old: str, new: str) -> None:
    """Say once in a process, on the first rank, what a name is called here.

    Args:
        old: The name that was used, as a sentence names it.
        new: What to write instead.
    """
    if old not in _hinted:
        _hinted.add(old)
        rank_zero_info(f"{old} is lightning-habana's name and goes on working. Here it is {new}.")
