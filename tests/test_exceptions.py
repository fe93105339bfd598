"""An exception in a user's code reaches the user unchanged and leaves everything whole."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from training import IGNORED_WARNINGS, Classifier, TiedGRU, conv_net, features, mlp, tokens, trainer

pytestmark = IGNORED_WARNINGS


@pytest.fixture(autouse=True)
def _interrupts_stay_on() -> Iterator[None]:
    """Lightning ignores SIGINT for good once it has handled a KeyboardInterrupt."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


class _FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, error: BaseException) -> Tensor:
        ctx.error = error
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise ctx.error


class Broken(Classifier):
    """Raises a given exception at a given place, at the second batch."""

    def __init__(self, network: torch.nn.Module, place: str, error: BaseException) -> None:
        super().__init__(network)
        self.place, self.error = place, error

    def raise_at(self, place: str, batch_idx: int = 1) -> None:
        if place == self.place and batch_idx == 1:
            raise self.error

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.raise_at("training_step", batch_idx)
        if self.place == "backward" and batch_idx == 1:
            loss = _FailingBackward.apply(loss, self.error)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.raise_at("on_before_optimizer_step")

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.raise_at("validation_step", batch_idx)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        self.raise_at("test_step", batch_idx)

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.raise_at("predict_step", batch_idx)
        return super().predict_step(batch, batch_idx)


class Witness(Callback):
    """Keeps the exception that Lightning reports."""

    seen: BaseException | None = None

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.seen = exception


def run(module: L.LightningModule, place: str, data: Any, **settings: Any) -> None:
    stage = {"test_step": "test", "predict_step": "predict"}.get(place, "fit")
    loop = trainer(**settings)
    if stage == "fit":
        loop.fit(module, data, data)
    else:
        getattr(loop, stage)(module, data)


def assert_whole(module: Broken) -> None:
    """The module lies on the CPU, as plain tensors, with the forwards of its classes."""
    for name, value in module.state_dict(keep_vars=True).items():
        assert type(value.data) is Tensor, name
        assert type(value) in (Tensor, torch.nn.Parameter), name
        assert value.device.type == "cpu", name
        assert value.grad is None or type(value.grad) is Tensor, name
    for child in module.modules():
        assert "forward" not in vars(child)
    assert module.device.type == "cpu"
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


PLACES = [
    "training_step",
    "backward",
    "on_before_optimizer_step",
    "validation_step",
    "test_step",
    "predict_step",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("network", [mlp, conv_net, TiedGRU])
def test_an_exception_reaches_the_user_unchanged(place: str, network: Any) -> None:
    data = {mlp: features(), conv_net: features((1, 6, 6)), TiedGRU: tokens(None)}[network]
    error = ZeroDivisionError("mine")
    module = Broken(network(), place, error)
    witness = Witness()
    with pytest.raises(ZeroDivisionError) as caught:
        run(module, place, data, callbacks=[witness])
    assert caught.value is error
    assert caught.value.args == ("mine",)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert witness.seen is error
    assert caught.traceback[-1].path.name == "test_exceptions.py"
    assert_whole(module)

    # The same module can be trained afterwards, as a new one can.
    module.place = "nowhere"
    module.train()  # a failed evaluation leaves it in eval mode, in stock Lightning too
    module.losses.clear()
    run(module, place="fit", data=data, max_epochs=1)
    assert len(module.losses) == len(data)
    assert_whole(module)


@pytest.mark.parametrize("place", PLACES)
def test_keyboard_interrupt(place: str) -> None:
    """Lightning turns Ctrl-C into an orderly exit with code 1, here as everywhere."""
    error = KeyboardInterrupt()
    module = Broken(mlp(), place, error)
    witness = Witness()
    with pytest.raises(SystemExit) as caught:
        run(module, place, features(), callbacks=[witness])
    assert caught.value.code == 1
    assert caught.value.__context__ is error
    assert witness.seen is error
    assert_whole(module)

    module.place = "nowhere"
    module.train()
    run(module, place="fit", data=features(), max_epochs=1)
    assert_whole(module)


def test_weights_after_an_exception_are_those_of_the_last_step() -> None:
    weights = []
    for place in ("training_step", "nowhere"):
        torch.manual_seed(0)
        module = Broken(mlp(), place, ZeroDivisionError())
        if place == "nowhere":
            run(module, place, features(), max_steps=1)
        else:
            with pytest.raises(ZeroDivisionError):
                run(module, place, features())
        weights.append(module.state_dict())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_an_error_in_setup_reaches_the_user() -> None:
    class NoOptimizer(Classifier):
        def configure_optimizers(self) -> Any:
            raise LookupError("no optimizer today")

    module = NoOptimizer(mlp())
    with pytest.raises(LookupError, match=r"^no optimizer today$"):
        trainer().fit(module, features())
    assert next(module.parameters()).device.type == "cpu"
    trainer().predict(module, features())


def test_a_batch_on_the_wrong_device_says_so() -> None:
    class Forgetful(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.network(batch[0] + torch.ones(4, 4)).sum()

    module = Forgetful(mlp())
    with pytest.raises(RuntimeError, match=r"at least two devices, hpu:0 and cpu!"):
        trainer().fit(module, features())
    assert next(module.parameters()).device.type == "cpu"
