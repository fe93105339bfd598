"""Training with ``precision="16-mixed"`` on the HPU against stock Lightning's on the CPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import RunPython
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from training import IGNORED_WARNINGS, NUM_BATCHES, Classifier, conv_net, features, mlp, trainer

from lightning_gaudi import HPUPrecision, emulator
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.precision import HPUGradScaler

pytestmark = [
    *IGNORED_WARNINGS,
    # As in stock Lightning, where the very first step overflows.
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:`training_step` returned `None`"),
]


class Overflows(Classifier):
    """The loss of one batch is too great for the scale: its gradients overflow."""

    bad_batch = -1

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * 1e38 if batch_idx == self.bad_batch else loss


class Manual(Overflows):
    automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def fit(
    accelerator: str, module: Classifier, shape: tuple[int, ...] = (4,), **settings: Any
) -> Any:
    """Train with float16; stock Lightning builds no such plugin for the CPU, but has it."""
    if accelerator == "hpu":
        run = trainer("hpu", precision="16-mixed", **settings)
    else:
        run = trainer("cpu", plugins=[MixedPrecision("16-mixed", "cpu")], **settings)
    run.fit(module, features(shape))
    return run


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Overflows, {}),
        (Overflows, {"gradient_clip_val": 0.05}),
        (Overflows, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
        (Overflows, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}),
        (Manual, {}),
    ],
    ids=["plain", "norm", "value", "accumulation", "manual"],
)
@pytest.mark.parametrize("bad_batch", [-1, 3])
def test_against_stock_lightning(kind: Any, settings: dict[str, Any], bad_batch: int) -> None:
    modules, scalers = [], []
    for accelerator in ("hpu", "cpu"):
        torch.manual_seed(0)
        module = kind(mlp(), lambda weights: torch.optim.SGD(weights, 0.5))
        module.bad_batch = bad_batch
        run = fit(accelerator, module, **settings)
        modules.append(module)
        scalers.append(run.precision_plugin.scaler.state_dict())
    on_hpu, on_cpu = modules
    torch.testing.assert_close(on_hpu.losses, on_cpu.losses, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(on_hpu.state_dict(), on_cpu.state_dict(), rtol=5e-3, atol=5e-3)
    assert scalers[0] == scalers[1]
    num_bad = 2 if bad_batch >= 0 else 0
    assert scalers[0]["scale"] == 2.0**16 / 2**num_bad


@pytest.mark.parametrize("settings", [{}, {"gradient_clip_val": 0.05}], ids=["plain", "clipped"])
def test_close_to_float32(settings: dict[str, Any]) -> None:
    """Also the clipping: were the gradients still scaled, it would clip them to nothing."""
    states = []
    for precision in ("16-mixed", "32-true"):
        torch.manual_seed(0)
        module = Classifier(conv_net(), lambda weights: torch.optim.SGD(weights, 0.05))
        trainer("hpu", precision=precision, **settings).fit(module, features((1, 6, 6)))
        states.append(module.state_dict())
    torch.testing.assert_close(*states, rtol=0.02, atol=0.03)


def test_gradients_are_unscaled_where_hooks_see_them_and_in_manual_clipping() -> None:
    seen: dict[str, list[float]] = {"hook": [], "manual": []}

    class Sees(Classifier):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            seen["hook"].append(max(p.grad.abs().max().item() for p in self.parameters()))

    class Clips(Manual):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            self.clip_gradients(optimizer, 1e6, "norm")  # finds nothing to clip, but unscales
            seen["manual"].append(max(p.grad.abs().max().item() for p in self.parameters()))
            optimizer.step()

    for kind in (Sees, Clips):
        torch.manual_seed(0)
        fit("hpu", kind(mlp(), lambda weights: torch.optim.SGD(weights, 0.1)))
    assert len(seen["hook"]) == len(seen["manual"]) == 2 * NUM_BATCHES
    assert 0 < max(seen["hook"]) < 10
    torch.testing.assert_close(seen["hook"], seen["manual"])


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    def module() -> Overflows:
        torch.manual_seed(0)
        net = Overflows(mlp())
        net.bad_batch = 2
        return net

    unbroken, first, second = module(), module(), module()
    run = fit("hpu", unbroken, max_epochs=4)
    assert run.precision_plugin.scaler.get_scale() == 2.0**12
    run = fit("hpu", first, max_epochs=2)
    path = tmp_path / "last.ckpt"
    run.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["HPUPrecision"]
    assert (state["scale"], state["_growth_tracker"]) == (2.0**14, 3)

    resumed = trainer("hpu", precision="16-mixed", max_epochs=4)
    resumed.fit(second, features(), ckpt_path=path)
    assert resumed.precision_plugin.scaler.state_dict() == run_state(unbroken)
    torch.testing.assert_close(second.state_dict(), unbroken.state_dict(), rtol=0, atol=0)


def run_state(module: L.LightningModule) -> dict[str, Any]:
    return module.trainer.precision_plugin.scaler.state_dict()


class Steps(Callback):
    """Records what the device does in each training step."""

    def __init__(self) -> None:
        self.reads: list[int] = []
        self.compilations: list[int] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self._record = emulator.record()
        self._events = self._record.__enter__()

    def on_train_batch_end(self, *args: Any) -> None:
        torch.hpu.synchronize()
        self._record.__exit__(None, None, None)
        kinds = [event.kind for event in self._events]
        self.reads.append(kinds.count("host_read"))
        self.compilations.append(kinds.count("compile"))


class Quiet(Classifier):
    """Reads nothing itself."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)


@pytest.mark.parametrize(
    ("precision", "reads"),
    [("32-true", 0), ("bf16-mixed", 0), ("bf16-true", 0), ("16-mixed", 1), ("16-true", 0)],
)
def test_host_reads_and_compilations_of_a_step(precision: Any, reads: int) -> None:
    steps = Steps()
    # Foreach optimizers and a step count on the host, as a card wants them.
    module = Quiet(mlp(), lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9))
    with emulator.record(empty_cache=True):  # what other tests have compiled counts for nothing
        trainer("hpu", precision=precision, callbacks=[steps]).fit(module, features())
    assert steps.reads == [reads] * (2 * NUM_BATCHES)
    assert sum(steps.compilations[:3]) > 0
    assert steps.compilations[3:] == [0] * (2 * NUM_BATCHES - 3)


def test_a_training_step_without_a_loss() -> None:
    class Skips(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    modules = []
    for accelerator in ("hpu", "cpu"):
        torch.manual_seed(0)
        modules.append(Skips(mlp(), lambda weights: torch.optim.SGD(weights, 0.5)))
        fit(accelerator, modules[-1])
    assert len(modules[0].losses) == NUM_BATCHES
    states = [module.state_dict() for module in modules]
    torch.testing.assert_close(*states, rtol=5e-3, atol=5e-3)


def test_lbfgs_is_refused() -> None:
    message = "precision='16-mixed' cannot scale the losses that LBFGS computes within its step."
    module = Classifier(mlp(), lambda weights: torch.optim.LBFGS(weights, 0.1))
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}"):
        fit("hpu", module)


def test_the_scaler_is_never_cudas() -> None:
    run = L.Trainer(accelerator="hpu", precision="16-mixed", logger=False)
    assert type(run.precision_plugin.scaler) is HPUGradScaler
    for precision in ("32-true", "bf16-mixed", "bf16-true", "16-true"):
        assert HPUPrecision(precision).scaler is None  # type: ignore[arg-type]


def test_settings_of_the_scaler() -> None:
    ours = HPUGradScaler(init_scale=4.0)
    assert HPUPrecision("16-mixed", scaler=ours).scaler is ours
    stock = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=32.0))
    run = L.Trainer(accelerator="hpu", plugins=[stock], logger=False)
    assert type(run.precision_plugin.scaler) is HPUGradScaler
    assert run.precision_plugin.scaler.get_scale() == 32.0
    message = "scaler is for precision '16-mixed', but the precision is 'bf16-mixed'. Leave it out."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        HPUPrecision("bf16-mixed", scaler=ours)


@pytest.mark.parametrize("precision", ["16-mixed", "16-true"])
def test_a_first_generation_card(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_gaudi.runtime import device

    monkeypatch.setattr(device, "name", lambda: "GAUDI")
    message = f"precision={precision!r} needs a Gaudi 2 or newer"
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}"):
        HPUPrecision(precision)
    HPUPrecision("bf16-mixed")


TWO_RANKS = """
    import warnings
    warnings.simplefilter("ignore")
    import lightning as L, torch
    import lightning_gaudi
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = nn.Linear(4, 1)

        def training_step(self, batch, batch_idx):
            is_bad = batch_idx == 1 and self.global_rank == 1
            out = self.network(batch[0])
            return nn.functional.mse_loss(out, torch.full_like(out, 6e4 if is_bad else 0.0))

        def on_train_batch_end(self, *args):
            self.seen.append([p.detach().cpu().clone() for p in self.parameters()])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    torch.manual_seed(0)
    net = Net()
    net.seen = []
    run = L.Trainer(accelerator="hpu", devices=2, precision="16-mixed", max_epochs=1, logger=False,
                    enable_checkpointing=False, enable_progress_bar=False,
                    use_distributed_sampler=False)
    run.fit(net, DataLoader(TensorDataset(torch.randn(12, 4)), 4))
    torch.save([net.seen, run.precision_plugin.scaler.get_scale()], f"rank{run.global_rank}.pt")
"""


@pytest.mark.slow
def test_all_ranks_skip_a_step_that_overflows_on_one(run_python: RunPython, tmp_path: Path) -> None:
    run_python(TWO_RANKS, LIGHTNING_GAUDI_EMULATOR_DEVICES="2")
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(ranks[0], ranks[1], rtol=0, atol=0)
    (first, second, third), scale = ranks[0]
    assert scale == 2.0**15
    assert torch.equal(first[0], second[0])
    assert not torch.equal(second[0], third[0])
