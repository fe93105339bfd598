"""Many cards: which card a process takes, and the collectives' backend."""

from __future__ import annotations

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.runtime import environment, loading


def choose_card(local_rank: int) -> None:
    """Choose the card of this process; to be called in each rank before the software loads.

    The bridge keeps a module id that is set, so an inherited one would give every rank card 0
    (bridge 1.19.0, ``hccl/__init__.py``): it is overwritten. The cards are those that
    ``HABANA_VISIBLE_MODULES`` names, in its order.

    Raises:
        ConfigurationError: There are more processes than cards.
    """
    visible = environment.visible_modules()
    if visible and local_rank >= len(visible):
        raise ConfigurationError(
            f"local rank {local_rank} has no card: {environment.VISIBLE_MODULES} names "
            f"{len(visible)} ({','.join(visible)}). Start as many processes as there are cards."
        )
    environment.set_module_id(visible[local_rank] if visible else str(local_rank))


def load_backend() -> None:
    """Register the process-group backend ``"hccl"``."""
    loading.module("torch.distributed.hccl")
