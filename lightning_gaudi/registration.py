"""Make Lightning know the HPU: its registries, and one guarded patch of its connector.

The connector has no hook for what follows when ``accelerator`` is ``"hpu"``, an `HPUAccelerator`
or ``"auto"``: it refuses the first, runs the second on the CPU, and never considers our registry
entry for the third; it builds autocast for CUDA, and lets other strategies run where the HPU was
asked for; it knows processes that ``mpirun`` has started by mpi4py only; and it takes every
DDPStrategy for a distributed one. So five of its methods are wrapped (lightning 2.6.6,
``trainer/connectors/accelerator_connector.py``: lines 199, 386, 401, 411, 489 and
``is_distributed``). Each wrapper decides for our classes only and calls the original otherwise.
"""

from __future__ import annotations

import inspect
from functools import wraps
from typing import Any

from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector

from lightning_gaudi import batch_size_finder, moving_over
from lightning_gaudi.accelerator import HPUAccelerator
from lightning_gaudi.cluster import choose_environment
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.fsdp import GaudiFSDPStrategy
from lightning_gaudi.hpu_strategy import HPUStrategy
from lightning_gaudi.precision import HPUPrecision
from lightning_gaudi.strategy import GaudiStrategy

_STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gaudi": ("Gaudi, lazy mode, one card or many", {}),
    "gaudi_eager": ("Gaudi, eager mode", {"mode": "eager"}),
    "gaudi_compile": ("Gaudi, torch.compile", {"mode": "compile"}),
}
_SHARDING = {
    "gaudi_fsdp": "Gaudi, parameters sharded over all cards (FSDP2)",
}
_PATCHED = (
    "_choose_strategy",
    "_choose_auto_accelerator",
    "_choose_and_init_cluster_environment",
    "_check_and_init_precision",
    "is_distributed",
)
_MARK = "_lightning_gaudi_original"


def register() -> None:
    """Register names and patch the connector. Calling it again does nothing more.

    Raises:
        RuntimeError: This Lightning's connector is not the one that the patch was written for.
    """
    if not hasattr(_AcceleratorConnector, _MARK):
        _patch_connector()
    batch_size_finder.register()
    AcceleratorRegistry.register("hpu", HPUAccelerator, description="Intel Gaudi", override=True)
    for name, (description, init_params) in _STRATEGIES.items():
        StrategyRegistry.register(
            name, GaudiStrategy, description=description, override=True, **init_params
        )
    for name, description in _SHARDING.items():
        StrategyRegistry.register(name, GaudiFSDPStrategy, description=description, override=True)
    for name, strategy in moving_over.STRATEGIES.items():
        StrategyRegistry.register(
            name, strategy, description="Name from lightning-habana", override=True
        )


def _patch_connector() -> None:
    missing = [name for name in _PATCHED if not hasattr(_AcceleratorConnector, name)]
    if missing:
        import lightning

        raise RuntimeError(
            f"lightning {lightning.__version__} has no _AcceleratorConnector.{missing[0]}, which "
            "lightning_gaudi must wrap to make accelerator='hpu' work. Use a lightning release "
            "that lightning_gaudi supports (see its README), and please report this one."
        )
    originals = {name: inspect.getattr_static(_AcceleratorConnector, name) for name in _PATCHED}
    choose_strategy = originals["_choose_strategy"]
    choose_auto_accelerator = _AcceleratorConnector._choose_auto_accelerator
    choose_environment_of_lightning = originals["_choose_and_init_cluster_environment"]
    check_and_init_precision = originals["_check_and_init_precision"]
    is_distributed = originals["is_distributed"].fget

    @wraps(choose_strategy)
    def _choose_strategy(self: Any) -> Any:
        if isinstance(self.accelerator, HPUAccelerator):
            return GaudiStrategy()
        return choose_strategy(self)

    @wraps(choose_auto_accelerator)
    def _choose_auto_accelerator(self: Any) -> str:
        strategy = self._strategy_flag
        if isinstance(strategy, HPUStrategy):
            return "hpu"
        if any(strategy in names for names in (_STRATEGIES, _SHARDING, moving_over.STRATEGIES)):
            return "hpu"
        # Also with a strategy of another kind, which is then refused: it would train on the CPU
        # of a machine with a card. One that names its device is taken at its word.
        if HPUAccelerator.is_available() and not isinstance(strategy, SingleDeviceStrategy):
            return "hpu"
        return choose_auto_accelerator()

    @wraps(choose_environment_of_lightning)
    def _choose_and_init_cluster_environment(self: Any) -> ClusterEnvironment:
        environment: ClusterEnvironment = choose_environment_of_lightning(self)
        is_users = self._cluster_environment_flag is not None
        if is_users or not isinstance(self.accelerator, HPUAccelerator):
            return environment
        return choose_environment(environment)

    @wraps(check_and_init_precision)
    def _check_and_init_precision(self: Any) -> Precision:
        # The first method that runs when both accelerator and strategy stand.
        if isinstance(self.accelerator, HPUAccelerator):
            self.accelerator.check_strategy(self.strategy)
        if isinstance(self.strategy, HPUStrategy):
            given = self._precision_plugin_flag
            if given is None:
                return HPUPrecision(self._precision_flag)
            # Lightning takes a strategy's plugin and forgets the Trainer's precision. The default
            # cannot be told from a "32-true" that was asked for.
            if self._precision_flag not in ("32-true", given.precision):
                raise ConfigurationError(
                    f"precision={self._precision_flag!r} of the Trainer contradicts the strategy's "
                    f"precision plugin, {type(given).__name__}({given.precision!r}). Leave out one "
                    "of them."
                )
        plugin: Precision = check_and_init_precision(self)
        return plugin

    @wraps(is_distributed)
    def _is_distributed(self: Any) -> bool:
        if isinstance(self.strategy, HPUStrategy):
            return not self.strategy.has_one_device
        return bool(is_distributed(self))

    connector: Any = _AcceleratorConnector
    connector._choose_strategy = _choose_strategy
    connector._choose_auto_accelerator = _choose_auto_accelerator
    connector._choose_and_init_cluster_environment = _choose_and_init_cluster_environment
    connector._check_and_init_precision = _check_and_init_precision
    connector.is_distributed = property(_is_distributed)
    setattr(connector, _MARK, originals)
