"""Make Fabric know the HPU: its registries, and guarded patches of its connector.

Fabric has registries and a connector of its own, and no hook for what follows when ``accelerator``
is ``"hpu"``, an `HPUAccelerator` or ``"auto"``: a registered ``"hpu"`` alone runs on the CPU, and
so does an instance; ``"auto"`` never considers our entry; autocast is built for CUDA; and
strategies of other devices run where the HPU was asked for. ``Fabric.setup`` also wants a
``launch()`` first from every strategy that is not Lightning's own for one device. So some methods
are wrapped (lightning 2.6.6, ``fabric/connector.py`` and ``fabric/fabric.py``). Each wrapper
decides for our classes only and calls the original otherwise.
"""

from __future__ import annotations

import inspect
from functools import wraps
from typing import Any

from lightning.fabric import Fabric
from lightning.fabric.accelerators import ACCELERATOR_REGISTRY
from lightning.fabric.connector import _Connector
from lightning.fabric.plugins import ClusterEnvironment, Precision
from lightning.fabric.strategies import STRATEGY_REGISTRY
from lightning.fabric.strategies.single_device import SingleDeviceStrategy

from lightning_gaudi.accelerator import HPUAccelerator
from lightning_gaudi.cluster import choose_environment
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.fabric.precision import HPUFabricPrecision
from lightning_gaudi.fabric.strategy import GaudiFabricStrategy
from lightning_gaudi.hpu_strategy import HPUStrategy

_STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gaudi": ("Gaudi, lazy mode, one card or many", {}),
    "gaudi_eager": ("Gaudi, eager mode", {"mode": "eager"}),
    "gaudi_compile": ("Gaudi, torch.compile", {"mode": "compile"}),
    "hpu_single": ("Name from lightning-habana for 'gaudi'", {}),
    "hpu_parallel": ("Name from lightning-habana for 'gaudi'", {}),
    "hpu_ddp": ("Name from lightning-habana for 'gaudi'", {}),
}
_PATCHED = (
    (_Connector, "_check_config_and_set_final_flags"),
    (_Connector, "_choose_auto_accelerator"),
    (_Connector, "_choose_and_init_cluster_environment"),
    (_Connector, "_choose_strategy"),
    (_Connector, "_check_strategy_and_fallback"),
    (_Connector, "_check_and_init_precision"),
    (Fabric, "_validate_launched"),
)
_MARK = "_lightning_gaudi_original"


def register() -> None:
    """Register names with Fabric and patch it. Calling it again does nothing more.

    Raises:
        RuntimeError: This Lightning's Fabric is not the one that the patch was written for.
    """
    if not hasattr(_Connector, _MARK):
        _patch()
    ACCELERATOR_REGISTRY.register("hpu", HPUAccelerator, description="Intel Gaudi", override=True)
    for name, (description, init_params) in _STRATEGIES.items():
        STRATEGY_REGISTRY.register(
            name, GaudiFabricStrategy, description=description, override=True, **init_params
        )


def _patch() -> None:
    for owner, name in _PATCHED:
        if not hasattr(owner, name):
            import lightning

            raise RuntimeError(
                f"lightning {lightning.__version__} has no Fabric method {owner.__name__}.{name}, "
                "which lightning_gaudi must wrap to make Fabric(accelerator='hpu') work. Use a "
                "lightning release that lightning_gaudi supports (see its README), and please "
                "report this one."
            )
    originals = {name: inspect.getattr_static(owner, name) for owner, name in _PATCHED}
    _patch_choices(originals)
    _patch_checks(originals)
    setattr(_Connector, _MARK, originals)


def _patch_choices(originals: dict[str, Any]) -> None:
    """Whatever is left to Fabric becomes ours where the HPU is meant."""
    choose_auto_accelerator = originals["_choose_auto_accelerator"].__func__
    choose_environment_of_lightning = originals["_choose_and_init_cluster_environment"]
    choose_strategy = originals["_choose_strategy"]
    check_and_init_precision = originals["_check_and_init_precision"]

    @wraps(choose_auto_accelerator)
    def _choose_auto_accelerator(self: Any) -> str:
        strategy = self._strategy_flag
        if isinstance(strategy, GaudiFabricStrategy) or strategy in _STRATEGIES:
            return "hpu"
        # Also with a strategy of another kind, which is then refused: it would train on the CPU
        # of a machine with a card. One that names its device is taken at its word.
        if HPUAccelerator.is_available() and not isinstance(strategy, SingleDeviceStrategy):
            return "hpu"
        return str(choose_auto_accelerator())

    @wraps(choose_environment_of_lightning)
    def _choose_and_init_cluster_environment(self: Any) -> ClusterEnvironment:
        environment: ClusterEnvironment = choose_environment_of_lightning(self)
        is_users = self._cluster_environment_flag is not None
        if is_users or not isinstance(self.accelerator, HPUAccelerator):
            return environment
        return choose_environment(environment)

    @wraps(choose_strategy)
    def _choose_strategy(self: Any) -> Any:
        if isinstance(self.accelerator, HPUAccelerator):
            return GaudiFabricStrategy()
        return choose_strategy(self)

    @wraps(check_and_init_precision)
    def _check_and_init_precision(self: Any) -> Precision:
        is_ours = isinstance(self.strategy, GaudiFabricStrategy)
        if is_ours and self._precision_instance is None:
            return HPUFabricPrecision(self._precision_input)
        plugin: Precision = check_and_init_precision(self)
        return plugin

    connector: Any = _Connector
    connector._choose_auto_accelerator = _choose_auto_accelerator
    connector._choose_and_init_cluster_environment = _choose_and_init_cluster_environment
    connector._choose_strategy = _choose_strategy
    connector._check_and_init_precision = _check_and_init_precision


def _patch_checks(originals: dict[str, Any]) -> None:
    """What cannot run on the HPU is refused, and what needs no launch does not ask for one."""
    check_config = originals["_check_config_and_set_final_flags"]
    check_strategy = originals["_check_strategy_and_fallback"]
    validate_launched = originals["_validate_launched"]

    @wraps(check_config)
    def _check_config_and_set_final_flags(self: Any, strategy: Any, **kwargs: Any) -> None:
        if isinstance(strategy, HPUStrategy):
            raise ConfigurationError(
                f"{type(strategy).__name__} is the Trainer's. Fabric has strategies of its own: "
                "use lightning_gaudi.fabric.GaudiFabricStrategy, which takes the same arguments "
                "as GaudiStrategy, or strategy='gaudi'."
            )
        check_config(self, strategy=strategy, **kwargs)

    @wraps(check_strategy)
    def _check_strategy_and_fallback(self: Any) -> None:
        strategy = self._strategy_flag
        is_ours = isinstance(strategy, GaudiFabricStrategy) or strategy in _STRATEGIES
        if isinstance(self.accelerator, HPUAccelerator) and not is_ours:
            raise ConfigurationError(
                "accelerator='hpu' needs GaudiFabricStrategy, which sets the execution mode and "
                "breaks the lazy graph, but the strategy is "
                f"{strategy if isinstance(strategy, str) else type(strategy).__name__}. Use "
                "strategy='gaudi', or leave the strategy out: one copy of the model on each card. "
                "In Fabric there is none that shards a model over HPUs. To run on the CPU, say "
                "accelerator='cpu'."
            )
        check_strategy(self)

    @wraps(validate_launched)
    def _validate_launched(self: Any) -> None:
        strategy = self._strategy
        if not (isinstance(strategy, GaudiFabricStrategy) and strategy.has_one_device):
            validate_launched(self)

    connector: Any = _Connector
    connector._check_config_and_set_final_flags = _check_config_and_set_final_flags
    connector._check_strategy_and_fallback = _check_strategy_and_fallback
    fabric: Any = Fabric
    fabric._validate_launched = _validate_launched
