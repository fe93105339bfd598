"""What is trained on the HPU equals what stock Lightning trains on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional
from training import (
    IGNORED_WARNINGS,
    NUM_BATCHES,
    Classifier,
    TiedGRU,
    TinyTransformer,
    conv_net,
    features,
    mlp,
    tokens,
    trainer,
)

pytestmark = [
    *IGNORED_WARNINGS,
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def assert_same_state(on_hpu: nn.Module, on_cpu: nn.Module) -> None:
    """The state dicts are equal, and the one from the HPU is made of plain CPU tensors."""
    expected = on_cpu.state_dict()
    found = on_hpu.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert type(value) is Tensor, name
        assert value.device.type == "cpu", name
        torch.testing.assert_close(
            value, expected[name], msg=lambda m, n=name: f"{n}: {m}", **TOLERANCE
        )


def fit_both(
    make_module: Callable[[], L.LightningModule], make_data: Callable[[], Any], **settings: Any
) -> tuple[Any, Any]:
    """Train the same module on the HPU and with stock Lightning on the CPU."""
    modules = []
    for accelerator in ("hpu", "cpu"):
        torch.manual_seed(0)
        module = make_module()
        trainer(accelerator, **settings).fit(module, make_data())
        modules.append(module)
    assert modules[0].losses
    torch.testing.assert_close(modules[0].losses, modules[1].losses, **TOLERANCE)
    assert_same_state(*modules)
    return modules[0], modules[1]


@pytest.mark.parametrize(
    ("network", "data"),
    [
        pytest.param(mlp, features, id="mlp"),
        pytest.param(TiedGRU, lambda: tokens(None), id="tied GRU"),
        pytest.param(conv_net, lambda: features((1, 6, 6)), id="conv net with batch norm"),
        pytest.param(TinyTransformer, tokens, id="transformer"),
    ],
)
def test_against_stock_lightning(network: Callable[[], nn.Module], data: Callable[[], Any]) -> None:
    module, _ = fit_both(lambda: Classifier(network()), data)
    assert len(module.losses) == 2 * NUM_BATCHES
    assert module.losses[-1] != module.losses[0]


def test_tied_weights_stay_tied() -> None:
    module, _ = fit_both(lambda: Classifier(TiedGRU()), lambda: tokens(None))
    assert module.network.output.weight is module.network.embedding.weight
    parameters = list(module.parameters())
    assert len({id(parameter) for parameter in parameters}) == len(parameters)


def test_running_statistics_are_trained() -> None:
    module, _ = fit_both(lambda: Classifier(conv_net()), lambda: features((1, 6, 6)))
    norm = module.network[1]
    assert int(norm.num_batches_tracked) == 2 * NUM_BATCHES
    assert not torch.equal(norm.running_mean, torch.zeros(4))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"accumulate_grad_batches": 4}, id="accumulation, ragged at the end"),
        pytest.param({"gradient_clip_val": 0.05}, id="clipping by norm"),
        pytest.param(
            {"gradient_clip_val": 0.005, "gradient_clip_algorithm": "value"}, id="by value"
        ),
    ],
)
def test_trainer_settings(settings: dict[str, Any]) -> None:
    def make_module() -> Classifier:
        return Classifier(mlp(), lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9))

    module, _ = fit_both(make_module, features, **settings)
    plain, _ = fit_both(make_module, features)
    assert not torch.allclose(module.network[0].weight, plain.network[0].weight, **TOLERANCE)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        pytest.param(lambda w: torch.optim.SGD(w, 0.1), id="SGD"),
        pytest.param(lambda w: torch.optim.SGD(w, 0.1, momentum=0.9, nesterov=True), id="nesterov"),
        pytest.param(lambda w: torch.optim.Adam(w, 0.01, amsgrad=True), id="amsgrad"),
        pytest.param(lambda w: torch.optim.RMSprop(w, 0.01), id="RMSprop"),
        pytest.param(lambda w: torch.optim.Adagrad(w, 0.01), id="Adagrad"),
        pytest.param(lambda w: torch.optim.LBFGS(w, 0.1, max_iter=3), id="LBFGS"),
    ],
)
def test_optimizers(make_optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
    fit_both(lambda: Classifier(mlp(), make_optimizer), features)


def test_learning_rate_schedulers() -> None:
    rates: list[list[float]] = []

    class Rates(Callback):
        def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            rates.append([])

        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            rates[-1].append(trainer.optimizers[0].param_groups[0]["lr"])

    def configure(weights: Any) -> Any:
        optimizer = torch.optim.AdamW(weights, 0.01)
        step = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
        epoch = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10)
        return [optimizer], [
            {"scheduler": step, "interval": "step"},
            {"scheduler": epoch, "monitor": "loss"},
        ]

    fit_both(lambda: Classifier(mlp(), configure), features, callbacks=[Rates()], max_epochs=3)
    assert rates[0] == pytest.approx(rates[1])
    assert len(set(rates[0])) == 3 * NUM_BATCHES


class Adversaries(L.LightningModule):
    """Two optimizers in manual optimization, with clipping and accumulation by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Linear(4, 4)
        self.critic = nn.Linear(4, 1)
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        first, second = self.optimizers()
        made = self.generator(batch[0])

        self.toggle_optimizer(first)
        loss = functional.softplus(-self.critic(made)).mean()
        self.manual_backward(loss)
        self.clip_gradients(first, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        first.step()
        first.zero_grad()
        self.untoggle_optimizer(first)

        self.toggle_optimizer(second)
        critic_loss = functional.softplus(self.critic(made.detach())).mean()
        critic_loss = critic_loss + functional.softplus(-self.critic(batch[0])).mean()
        self.manual_backward(critic_loss / 2)
        if batch_idx % 2:
            second.step()
            second.zero_grad()
        self.untoggle_optimizer(second)
        self.losses += [loss.item(), critic_loss.item()]

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.AdamW(self.generator.parameters(), 0.01),
            torch.optim.SGD(self.critic.parameters(), 0.1, momentum=0.9),
        ]


def test_manual_optimization_with_two_optimizers() -> None:
    module, _ = fit_both(Adversaries, features)
    assert len(module.losses) == 2 * 2 * NUM_BATCHES


def test_validate_test_and_predict() -> None:
    results: dict[str, list[Any]] = {}
    for accelerator in ("hpu", "cpu"):
        torch.manual_seed(0)
        module = Classifier(conv_net())
        run = trainer(accelerator)
        data = features((1, 6, 6))
        results[accelerator] = [
            run.validate(module, data, verbose=False)[0]["val_loss"],
            run.test(module, data, verbose=False)[0]["test_loss"],
            run.predict(module, data),
        ]
    assert results["hpu"][0] == pytest.approx(results["cpu"][0], abs=1e-6)
    assert results["hpu"][1] == pytest.approx(results["cpu"][1], abs=1e-6)
    predictions = results["hpu"][2]
    assert len(predictions) == NUM_BATCHES
    assert {type(prediction) for prediction in predictions} == {Tensor}
    torch.testing.assert_close(predictions, results["cpu"][2], **TOLERANCE)


def test_predict_outputs_of_any_structure_come_to_the_cpu() -> None:
    class Nested(Classifier):
        def predict_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            logits = self.network(batch[0])
            return {"logits": logits, "more": [logits.argmax(1), (None, batch_idx, "text")]}

    predictions = trainer().predict(Nested(mlp()), features(rows=8))
    assert predictions is not None
    assert type(predictions[1]["logits"]) is Tensor
    assert type(predictions[1]["more"][0]) is Tensor
    assert predictions[1]["more"][1] == (None, 1, "text")


# --- checkpoints --------------------------------------------------------------------------------


def fit_with_checkpoint(
    folder: Path, accelerator: str, *, max_epochs: int, resume: Path | None = None
) -> tuple[Classifier, Path]:
    torch.manual_seed(0)
    module = Classifier(TiedGRU())
    checkpoint = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_last=True)
    run = trainer(
        accelerator, max_epochs=max_epochs, callbacks=[checkpoint], enable_checkpointing=True
    )
    run.fit(module, tokens(None), ckpt_path=resume)
    return module, Path(checkpoint.last_model_path)


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path: Path) -> None:
    whole, _ = fit_with_checkpoint(tmp_path / "whole", "hpu", max_epochs=4)
    _, half = fit_with_checkpoint(tmp_path / "half", "hpu", max_epochs=2)
    resumed, _ = fit_with_checkpoint(tmp_path / "resumed", "hpu", max_epochs=4, resume=half)

    assert resumed.losses == whole.losses[2 * NUM_BATCHES :]
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_a_checkpoint_is_stock_lightnings(tmp_path: Path) -> None:
    _, from_hpu = fit_with_checkpoint(tmp_path / "hpu", "hpu", max_epochs=2)
    _, from_cpu = fit_with_checkpoint(tmp_path / "cpu", "cpu", max_epochs=2)

    content = torch.load(from_hpu, weights_only=True)
    expected = torch.load(from_cpu, weights_only=True)
    assert content.keys() == expected.keys() | {"gaudi_random_states"}
    assert {type(value) for value in content["state_dict"].values()} == {Tensor}
    torch.testing.assert_close(content["state_dict"], expected["state_dict"], **TOLERANCE)
    state, expected_state = content["optimizer_states"][0], expected["optimizer_states"][0]
    assert state["param_groups"] == expected_state["param_groups"]
    torch.testing.assert_close(state["state"], expected_state["state"], **TOLERANCE)
    assert b"lightning_gaudi" not in from_hpu.read_bytes()

    # Stock Lightning goes on from it on the CPU, and so do we from stock Lightning's.
    on_cpu, _ = fit_with_checkpoint(tmp_path / "1", "cpu", max_epochs=4, resume=from_hpu)
    back, _ = fit_with_checkpoint(tmp_path / "2", "hpu", max_epochs=4, resume=from_cpu)
    torch.testing.assert_close(on_cpu.losses, back.losses, **TOLERANCE)
    assert_same_state(back, on_cpu)


def test_optimizer_state_lies_on_the_hpu_after_resuming(tmp_path: Path) -> None:
    devices: list[dict[str, str]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            state = next(iter(trainer.optimizers[0].state.values()))
            devices.append({name: str(value.device) for name, value in state.items()})

    _, half = fit_with_checkpoint(tmp_path, "hpu", max_epochs=2)
    run = trainer(max_epochs=3, callbacks=[Watch()])
    run.fit(Classifier(TiedGRU()), tokens(None), ckpt_path=half)
    # The step count stays on the host, where the optimizer reads it.
    expected = {"step": "cpu", "exp_avg": "hpu:0", "exp_avg_sq": "hpu:0"}
    assert devices == [expected] * NUM_BATCHES


def test_early_stopping_and_best_checkpoint(tmp_path: Path) -> None:
    ends: dict[str, Any] = {}
    for accelerator in ("hpu", "cpu"):
        torch.manual_seed(0)
        module = Classifier(mlp(), lambda weights: torch.optim.SGD(weights, 0.5, momentum=0.9))
        best = ModelCheckpoint(tmp_path / accelerator, monitor="val_loss", filename="{epoch}")
        stopping = EarlyStopping("val_loss", patience=1)
        run = trainer(
            accelerator, max_epochs=20, callbacks=[best, stopping], enable_checkpointing=True
        )
        run.fit(module, features(), features((4,), rows=8))
        tested = run.test(module, features(), ckpt_path="best", verbose=False)[0]["test_loss"]
        ends[accelerator] = (
            run.current_epoch,
            Path(best.best_model_path).name,
            pytest.approx(float(best.best_model_score), abs=1e-5),
            pytest.approx(tested, abs=1e-5),
        )
    assert ends["hpu"] == ends["cpu"]
    assert 1 < ends["hpu"][0] < 20


def test_a_module_can_be_trained_evaluated_and_trained_again() -> None:
    def run(accelerator: str) -> Classifier:
        torch.manual_seed(0)
        module = Classifier(mlp())
        for _ in range(2):
            trainer(accelerator, max_epochs=1).fit(module, features(), features())
            trainer(accelerator).test(module, features(), verbose=False)
        return module

    on_hpu, on_cpu = run("hpu"), run("cpu")
    torch.testing.assert_close(on_hpu.losses, on_cpu.losses, **TOLERANCE)
    assert_same_state(on_hpu, on_cpu)
