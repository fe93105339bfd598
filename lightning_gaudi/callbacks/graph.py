"""`HPUGraphCallback`: forwards become HPU-graph replays, of training steps too if asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import track
from torch import nn
from typing_extensions import override

from lightning_gaudi.callbacks.compiled import CompiledForward
from lightning_gaudi.callbacks.options import (
    GraphOptions,
    Stage,
    Warmup,
    check_stages,
    check_switch,
    check_targets,
    check_warmup,
)
from lightning_gaudi.callbacks.report import CallbackStats, add_counts, table_of
from lightning_gaudi.callbacks.swapping import CallCounter, Installation, Target, opaque
from lightning_gaudi.callbacks.targets import children_of, choose_targets, scripted_children
from lightning_gaudi.callbacks.verification import VerifiedForward
from lightning_gaudi.callbacks.warmup import warmup_calls
from lightning_gaudi.graphs.out_of_memory import explain_out_of_memory
from lightning_gaudi.graphs.replay import GraphedForward, OnFailure
from lightning_gaudi.graphs.stats import GraphRow, GraphStats
from lightning_gaudi.graphs.training import GraphedTraining
from lightning_gaudi.runtime import capture as hpu_capture
from lightning_gaudi.runtime import compilation


@dataclass(frozen=True, kw_only=True)
class _Graphs:
    """What is kept of a target from one stage to the next.

    Attributes:
        module: Its module.
        forward: Its forward replayed, or compiled.
        training: The same with its backward; None where that is never asked for.
    """

    module: nn.Module
    forward: GraphedForward | CompiledForward
    training: GraphedTraining | None


class HPUGraphCallback(Callback):
    """Captures forwards as HPU graphs and replays them.

    At the start of a stage the ``forward`` of each target is swapped for a `GraphedForward`; at its
    end, on an exception and on Ctrl-C whatever was there before comes back. Graphs are kept from
    one stage to the next of the same run and dropped at its end.

    What a forward does besides computing happens at the capture only: attributes and lists that it
    changes, ``self.log``, Python's own random numbers. Do that in the step, around the call.

    In stage ``"fit"`` forward and backward of a target are graphs, with the gradients of running op
    by op. The first step of each shape runs op by op, to see which outputs get gradients. What
    cannot be a graph (double backward, hooks on submodules or parameters, ever new shapes) runs op
    by op, which is said once. Validation inside a fit is stage ``"validate"``.

    HPU graphs exist in lazy mode only. In eager and compile mode the targets are compiled instead,
    with static shapes; then `stats` counts calls that compiled as captures and others as replays.

    Args:
        stages: In which stages: any of ``"fit"``, ``"validate"``, ``"test"``, ``"predict"``.
        targets: Names of submodules whose ``forward`` is captured, ``"forward"`` for the module's
            own. None takes the module's ``hpu_graph_targets`` if it has them, else its own forward
            if its class defines one, else each child module that a step calls.
        max_graphs: How many graphs a target keeps; beyond that the least recently used is dropped
            and, in stage ``"fit"``, calls run op by op.
        pad_batch: Whether a partial batch is padded to a captured batch size and its result cut,
            where the forward treats rows one by one. Not in stage ``"fit"``.
        clone_outputs: Whether outputs are the step's own. Without, they are valid until the
            target's next call with arguments of the same shapes.
        asynchronous: Whether replays return before the device is done. Reading a result waits.
        disable_tensor_cache: Whether graphs read the step's tensors where they are and keep no
            intermediate results, which takes less memory. Not in stage ``"fit"``.
        warmup: Calls to capture at the first start of a stage other than ``"fit"``, with a
            progress bar. The arguments of one call as a mapping of names to shapes, for a step that
            passes them by name; or a list of calls, in which a list of shapes stands for positional
            arguments. The dtype's name may end a shape: ``{"input_ids": [8, 128, "int64"]}``. With
            several targets a mapping of their names to such calls. ``"buckets"`` takes the lengths
            from the attribute ``buckets`` of the dataloaders' ``batch_sampler`` or ``collate_fn``
            or of the datamodule, and everything else from the data.
        on_failure: What to do where a forward cannot be captured: ``"raise"`` an error that names
            the op and the line, or run that target op by op (``"eager"``) and say so once.
        verify: Whether each call is also run op by op and compared, for debugging. Calls that write
            to their arguments or to buffers, or draw random numbers, are not compared.

    Raises:
        ConfigurationError: An argument has a value that it cannot have.
    """

    def __init__(
        self,
        stages: Iterable[Stage] | Stage = ("validate", "test", "predict"),
        targets: Iterable[str] | str | None = None,
        max_graphs: int = 16,
        pad_batch: bool = True,
        clone_outputs: bool = True,
        asynchronous: bool = False,
        disable_tensor_cache: bool = False,
        warmup: Warmup = None,
        on_failure: OnFailure = "raise",
        verify: bool = False,
    ) -> None:
        super().__init__()
        self.stages = check_stages(stages)
        self.targets = check_targets(targets)
        self.options = GraphOptions(
            max_graphs=max_graphs,
            pad_batch=pad_batch,
            clone_outputs=clone_outputs,
            asynchronous=asynchronous,
            disable_tensor_cache=disable_tensor_cache,
            on_failure=on_failure,
        )
        check_warmup(warmup)
        self.warmup = warmup
        check_switch("verify", verify)
        self.verify = verify
        self._graphs: dict[str, _Graphs] = {}
        self._past: dict[str, GraphStats] = {}
        self._installed: list[Installation] = []
        self._warm: dict[str, list[GraphRow]] = {}
        self._warned: set[str] = set()

    @property
    def stats(self) -> CallbackStats:
        """The counts so far: integers ``captures``, ``replays``, ``eager_calls`` and so on."""
        per_target: dict[str, GraphStats] = {}
        for name in [*self._past, *self._graphs]:
            per_target.setdefault(name, GraphStats())
        for name, stats in per_target.items():
            graphs, past = self._graphs.get(name), self._past.get(name)
            if graphs is not None:
                stats.add(graphs.forward.stats)
            if past is not None:
                add_counts(stats, past, with_graphs=graphs is None)
        # Children that no step called are not targets anybody asked for.
        return CallbackStats({name: s for name, s in per_target.items() if s.calls})

    # --- stages ---------------------------------------------------------------------------------

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the forwards in."""
        self._take_out()
        self._start("fit", trainer, pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the forwards in; inside a fit, in place of those of training."""
        self._start("validate", trainer, pl_module)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the forwards in."""
        self._start("test", trainer, pl_module)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the forwards in."""
        self._start("predict", trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the forwards back and log the counts."""
        self._finish(trainer, pl_module, "fit")

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the forwards back, or those of training in, and log the counts."""
        self._finish(trainer, pl_module, "validate")

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the forwards back and log the counts."""
        self._finish(trainer, pl_module, "test")

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the forwards back and log the counts."""
        self._finish(trainer, pl_module, "predict")

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Put the forwards back and drop the graphs: after this Lightning calls nothing more."""
        explain_out_of_memory(exception)  # while the graphs are there to tell of
        self._take_out()
        self._drop_graphs()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the counts and drop the graphs, since the module leaves the device."""
        self._take_out()
        had_graphs = bool(self._graphs)
        self._drop_graphs()
        if had_graphs and self.stats.calls and trainer.is_global_zero:
            self.print_table()

    def print_table(self) -> None:
        """Print the counts by target."""
        Console().print(table_of(self.stats))

    # --- swapping -------------------------------------------------------------------------------

    def _start(self, stage: Stage, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._installed and (stage != "validate" or self._installed[-1].stage != "fit"):
            self._take_out()  # a stage that ended without its hook
        if self._installed:
            self._installed[-1].take_out()
        if stage not in self.stages:
            return
        has_graphs = trainer.strategy.root_device.type == "hpu" and hpu_capture.is_supported()
        if not has_graphs and not self._can_compile(trainer):
            return
        modules, warns_unused = choose_targets(pl_module, self.targets)
        scripted = [] if warns_unused else scripted_children(pl_module)
        if scripted:
            self._warn_once(
                f"HPUGraphCallback: {', '.join(map(repr, scripted))} run as they are, since a "
                "torch.jit module's forward cannot be swapped."
            )
        installation = Installation(stage, warns_unused=warns_unused)
        for name, module in modules.items():
            graphs = self._graphs_for(name, module, has_graphs)
            stats = graphs.forward.stats
            replacement: Callable[..., Any] = graphs.forward
            if stage == "fit" and graphs.training is not None:
                replacement = graphs.training
            if self.verify:
                replacement = VerifiedForward(replacement, module.forward, module, repr(name))
            installation.targets.append(
                Target(
                    name=name,
                    module=module,
                    replacement=opaque(replacement, module.forward),
                    stats=stats,
                    calls_before=stats.calls,
                )
            )
        if warns_unused:
            chosen = set(map(id, modules.values()))
            installation.counters = [
                CallCounter(name, child)
                for name, child in children_of(pl_module)
                if id(child) not in chosen
            ]
        if self.warmup is not None and stage != "fit":
            self._warm_up(stage, trainer, installation)
        installation.put_in()
        self._installed.append(installation)

    def _can_compile(self, trainer: Trainer) -> bool:
        if trainer.strategy.root_device.type != "hpu" or not compilation.is_supported():
            self._warn_once(
                "HPUGraphCallback: there are HPU graphs on an HPU only, so forwards run as they "
                "are. Use Trainer(accelerator='hpu', strategy=GaudiStrategy(mode='lazy'))."
            )
            return False
        ignored = self.options.without_meaning_when_compiled()
        if ignored:
            self._warn_once(
                f"HPUGraphCallback: {', '.join(ignored)} has no meaning outside lazy mode, where "
                "targets are compiled in place of captured."
            )
        return True

    def _graphs_for(self, name: str, module: nn.Module, has_graphs: bool) -> _Graphs:
        known = self._graphs.get(name)
        if known is not None and known.module is module and known.forward.wraps(module.forward):
            return known
        if known is not None:
            self._keep_counts(name, known)
        forward: GraphedForward | CompiledForward
        training = None
        options = self.options
        if has_graphs:
            forward = GraphedForward(
                module.forward, module=module, name=repr(name), **options.as_dict()
            )
            if "fit" in self.stages:
                training = GraphedTraining(
                    forward,
                    module.forward,
                    module,
                    max_graphs=options.max_graphs,
                    clone_outputs=options.clone_outputs,
                    asynchronous=options.asynchronous,
                    on_failure=options.on_failure,
                )
        else:
            forward = CompiledForward(
                module.forward,
                name=repr(name),
                max_graphs=options.max_graphs,
                on_failure=options.on_failure,
            )
        self._graphs[name] = _Graphs(module=module, forward=forward, training=training)
        return self._graphs[name]

    def _warm_up(self, stage: Stage, trainer: Trainer, installation: Installation) -> None:
        cold = {t.name: t.module.forward for t in installation.targets if t.name not in self._warm}
        if not cold:
            return
        calls = [
            (self._graphs[name].forward, call)
            for name, of_target in warmup_calls(self.warmup, cold, trainer, stage).items()
            for call in of_target
        ]
        is_shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
        with trainer.precision_plugin.forward_context():
            for forward, call in track(calls, "Capturing HPU graphs", disable=not is_shown):
                forward.warmup([trainer.precision_plugin.convert_input(call)])
        for name in cold:
            self._warm[name] = list(self._graphs[name].forward.stats.graphs)

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        if self._installed and self._installed[-1].stage == stage:
            installation = self._installed.pop()
            installation.take_out()
            self._warn_of_unused(installation, pl_module)
            self._warn_of_cold(installation)
            if not trainer.sanity_checking:
                metrics = {f"hpu_graph/{name}": v for name, v in self.stats.as_dict().items()}
                for logger in trainer.loggers:
                    logger.log_metrics(metrics, step=trainer.global_step)
        if self._installed:
            self._installed[-1].put_in()

    def _warn_of_unused(self, installation: Installation, pl_module: LightningModule) -> None:
        unused = installation.unused()
        if not unused or not (
            installation.warns_unused or len(unused) == len(installation.targets)
        ):
            return
        called = [counter.name for counter in installation.counters if counter.calls]
        has_own = self.targets is None and hasattr(pl_module, "hpu_graph_targets")
        if has_own and not called and len(unused) == len(installation.targets):
            return  # the module knows its targets; there was nothing to do for any child
        self._warn_once(
            f"HPUGraphCallback: no step called {', '.join(map(repr, unused))}, so nothing of "
            "it was captured. Children that were called: "
            f"{', '.join(map(repr, called)) or 'none'}. Say what to capture with "
            "targets=[...]."
        )

    def _warn_of_cold(self, installation: Installation) -> None:
        """Say where no call fitted any of the graphs that `warmup` captured."""
        for target in installation.targets:
            rows = self._warm.get(target.name, [])
            if isinstance(self._graphs[target.name].forward, CompiledForward):
                continue  # which knows no rows by call
            if (
                rows
                and target.stats.calls > target.calls_before
                and not any(row.replays for row in rows)
            ):
                self._warn_once(
                    f"HPUGraphCallback: no call of {target.name!r} had the shapes of warmup. Its "
                    f"graphs are for {'; '.join(row.inputs for row in rows)}. Dtypes must be the "
                    "same too, and arguments that the step passes by name must have their names, "
                    "in the step's order."
                )

    def _take_out(self) -> None:
        """Put every forward back, the last first."""
        while self._installed:
            self._installed.pop().take_out()

    def _drop_graphs(self) -> None:
        for name, graphs in self._graphs.items():
            self._keep_counts(name, graphs)
        self._graphs = {}
        self._warm = {}

    def _keep_counts(self, name: str, graphs: _Graphs) -> None:
        kept = GraphStats()
        kept.add(graphs.forward.stats)
        past = self._past.get(name)
        if past is not None:
            add_counts(kept, past, with_graphs=not kept.graphs)
        self._past[name] = kept

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=3)
