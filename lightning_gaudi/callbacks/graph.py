"""`HPUGraphCallback`: forwards of validation, test and prediction become HPU-graph replays."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import nn
from typing_extensions import override

from lightning_gaudi.callbacks.targets import (
    CallCounter,
    ForwardSwap,
    choose_targets,
    count_calls,
)
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.graphs.replay import GraphedForward, OnFailure, check_options
from lightning_gaudi.graphs.stats import GraphStats
from lightning_gaudi.runtime import capture as hpu_capture

Stage = Literal["validate", "test", "predict"]
STAGES: tuple[str, ...] = get_args(Stage)


class CallbackStats(GraphStats):
    """The counts over all targets, and by target.

    Attributes:
        per_target: The counts of each target by name.
    """

    __slots__ = ("per_target",)

    def __init__(self, per_target: dict[str, GraphStats]) -> None:
        super().__init__()
        self.per_target = per_target
        for stats in per_target.values():
            self.add(stats)


@dataclass
class _Target:
    """A target that is swapped in now.

    Attributes:
        graphed: What its forward is meanwhile.
        swap: How to put the forward back.
        calls_before: Its calls before this stage.
    """

    graphed: GraphedForward
    swap: ForwardSwap
    calls_before: int


class HPUGraphCallback(Callback):
    """Captures forwards as HPU graphs and replays them.

    At the start of a stage the ``forward`` of each target is swapped for a `GraphedForward`; at its
    end, on an exception and on Ctrl-C whatever was there before comes back. Graphs are kept from
    one stage to the next of the same run and dropped at its end.

    What a forward does besides computing happens at the capture only: attributes and lists that it
    changes, ``self.log``, Python's own random numbers. Do that in the step, around the call.

    HPU graphs exist in lazy mode only; in eager mode forwards run as they are, which is said once.

    Args:
        stages: In which stages: any of ``"validate"``, ``"test"``, ``"predict"``.
        targets: Names of submodules whose ``forward`` is captured, ``"forward"`` for the module's
            own. None takes the module's ``hpu_graph_targets`` if it has them, else its own forward
            if its class defines one, else each child module that a step calls.
        max_graphs: How many graphs a target keeps; beyond that the least recently used is dropped.
        clone_outputs: Whether outputs are the step's own. Without, they are valid until the
            target's next call with arguments of the same shapes.
        on_failure: What to do where a forward cannot be captured: ``"raise"`` an error that names
            the op and the line, or run that target op by op (``"eager"``) and say so once.

    Raises:
        ConfigurationError: An argument has a value that it cannot have.
    """

    def __init__(
        self,
        stages: Iterable[Stage] = ("validate", "test", "predict"),
        targets: Iterable[str] | str | None = None,
        *,
        max_graphs: int = 16,
        clone_outputs: bool = True,
        on_failure: OnFailure = "raise",
    ) -> None:
        super().__init__()
        self.stages = (stages,) if isinstance(stages, str) else tuple(stages)
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown:
            raise ConfigurationError(
                f"stages must be of {', '.join(map(repr, STAGES))}, but {unknown[0]!r} is among "
                "them."
            )
        check_options(max_graphs, on_failure)
        self.targets = (
            (targets,) if isinstance(targets, str) else None if targets is None else tuple(targets)
        )
        self._options: dict[str, Any] = {
            "max_graphs": max_graphs,
            "clone_outputs": clone_outputs,
            "on_failure": on_failure,
        }
        self._graphed: dict[str, tuple[nn.Module, GraphedForward]] = {}
        self._past: dict[str, GraphStats] = {}
        self._installed: dict[str, _Target] = {}
        self._counters: list[CallCounter] = []
        self._warns_unused = False
        self._warned: set[str] = set()

    @property
    def stats(self) -> CallbackStats:
        """The counts so far: integers ``captures``, ``replays``, ``eager_calls`` and so on."""
        per_target = {name: GraphStats(**s.as_dict()) for name, s in self._past.items()}
        for name, (_, graphed) in self._graphed.items():
            per_target.setdefault(name, GraphStats()).add(graphed.stats)
        # Children that no step called are not targets anybody asked for.
        return CallbackStats({name: s for name, s in per_target.items() if s.calls})

    # --- stages ---------------------------------------------------------------------------------

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the forwards in."""
        self._install("validate", trainer, pl_module)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the forwards in."""
        self._install("test", trainer, pl_module)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the forwards in."""
        self._install("predict", trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the forwards back and log the counts."""
        self._finish(trainer)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the forwards back and log the counts."""
        self._finish(trainer)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the forwards back and log the counts."""
        self._finish(trainer)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Put the forwards back and drop the graphs: after this Lightning calls nothing more."""
        self._restore()
        self._drop_graphs()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Drop the graphs, since the module leaves the device, and print the counts."""
        self._restore()
        had_graphs = bool(self._graphed)
        self._drop_graphs()
        if had_graphs and self.stats.calls and trainer.is_global_zero:
            self.print_table()

    def print_table(self) -> None:
        """Print the counts by target."""
        table = Table(title="HPU graphs")
        table.add_column("target")
        for name in ("captures", "replays", "eager calls", "evictions", "capture s"):
            table.add_column(name, justify="right")
        stats = self.stats
        rows = [*stats.per_target.items()]
        if len(rows) > 1:
            rows.append(("all", stats))
        for name, s in rows:
            table.add_row(
                name,
                str(s.captures),
                str(s.replays),
                str(s.eager_calls),
                str(s.evictions),
                f"{s.capture_seconds:.2f}",
            )
        Console().print(table)

    # --- swapping -------------------------------------------------------------------------------

    def _install(self, stage: Stage, trainer: Trainer, pl_module: LightningModule) -> None:
        if stage not in self.stages:
            return
        if trainer.strategy.root_device.type != "hpu" or not hpu_capture.is_supported():
            self._warn_once(
                "HPUGraphCallback: HPU graphs exist in lazy mode on an HPU only, so forwards run "
                "as they are. Use Trainer(accelerator='hpu', strategy=GaudiStrategy(mode='lazy'))."
            )
            return
        self._restore()
        modules, self._warns_unused = choose_targets(pl_module, self.targets)
        try:
            for name, module in modules.items():
                graphed = self._graphed_for(name, module)
                self._installed[name] = _Target(
                    graphed, ForwardSwap(module, graphed), graphed.stats.calls
                )
            if self._warns_unused:
                self._counters = list(count_calls(pl_module, modules))
        except BaseException:
            self._restore()
            raise

    def _graphed_for(self, name: str, module: nn.Module) -> GraphedForward:
        known = self._graphed.get(name)
        if known is not None and known[0] is module and known[1].wraps(module.forward):
            return known[1]
        if known is not None:
            self._keep_counts(name, known[1])
        graphed = GraphedForward(module.forward, module=module, name=repr(name), **self._options)
        self._graphed[name] = (module, graphed)
        return graphed

    def _finish(self, trainer: Trainer) -> None:
        if not self._installed:
            return
        unused = [
            name
            for name, target in self._installed.items()
            if target.graphed.stats.calls == target.calls_before
        ]
        num_targets = len(self._installed)
        called = [counter.name for counter in self._counters if counter.calls]
        self._restore()
        if unused and (self._warns_unused or len(unused) == num_targets):
            self._warn_once(
                f"HPUGraphCallback: no step called {', '.join(map(repr, unused))}, so nothing of "
                "it was captured. Children that were called: "
                f"{', '.join(map(repr, called)) or 'none'}. Say what to capture with "
                "targets=[...]."
            )
        if not trainer.sanity_checking:
            metrics = {f"hpu_graph/{name}": v for name, v in self.stats.as_dict().items()}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)

    def _restore(self) -> None:
        """Undo in reverse, so that a module swapped twice ends as it began."""
        for counter in reversed(self._counters):
            counter.swap.undo()
        self._counters = []
        while self._installed:
            _, target = self._installed.popitem()
            target.swap.undo()

    def _drop_graphs(self) -> None:
        for name, (_, graphed) in self._graphed.items():
            self._keep_counts(name, graphed)
        self._graphed = {}

    def _keep_counts(self, name: str, graphed: GraphedForward) -> None:
        self._past.setdefault(name, GraphStats()).add(graphed.stats)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=3)
