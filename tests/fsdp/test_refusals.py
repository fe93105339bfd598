"""What FSDP cannot do is said at once, and with what to do."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import torch
import training
from distributed.jobs import run_ranks, values
from fsdp.runs import classifier, loader, make_trainer
from lightning.pytorch.strategies import StrategyRegistry
from torch import Tensor, nn
from torch.distributed import ReduceOp
from torch.distributed.fsdp import FSDPModule, fully_shard
from training import Classifier, mlp, trainer

from lightning_gaudi import GaudiFSDPStrategy, HPUGraphCallback, HPUPrecision
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.runtime import optimizers
from lightning_gaudi.sharding import modules

pytestmark = training.IGNORED_WARNINGS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"state_dict_type": "local"},
            "state_dict_type must be 'full' or 'sharded', but it is 'lo",
        ),
        ({"cpu_offload": True}, "keeps parameters and optimizer state on the cards: leave out cpu"),
        ({"mode": "compile"}, r"no mode='compile'.* block\.compile\(backend='hpu_backend'"),
        ({"mode": "fast"}, "mode must be one of 'lazy', 'eager', 'compile', but it is 'fast'"),
    ],
    ids=["state_dict_type", "cpu_offload", "compile", "mode"],
)
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        GaudiFSDPStrategy(**{"mode": "lazy", **arguments})


def test_names() -> None:
    for name in ("gaudi_fsdp", "hpu_fsdp"):
        assert issubclass(StrategyRegistry[name]["strategy"], GaudiFSDPStrategy)
    assert GaudiFSDPStrategy("lazy").process_group_backend == "hccl"


def test_more_devices_than_cards() -> None:
    with pytest.raises(
        ConfigurationError, match="devices=2 asks for 2 cards, but this machine has 1"
    ):
        make_trainer(2)


def test_one_card_shards_nothing() -> None:
    net = classifier(mlp)
    run = make_trainer(1, {})
    assert isinstance(run.strategy, GaudiFSDPStrategy)
    assert run.strategy.launcher is None
    run.fit(net, loader(run, is_text=False))
    assert not torch.distributed.is_initialized()
    assert not modules.is_sharded(net)
    assert net.device_mesh is None
    reference = classifier(mlp)
    other = make_trainer(1)
    other.fit(reference, loader(other, is_text=False))
    assert net.losses == reference.losses


class Peeking(Classifier):
    """Uses a group's weight outside that group's forward."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (
            super().training_step(batch, batch_idx)
            + self.network[0](batch[0]).sum() * (batch[0] @ self.network[0].weight.T).sum()
        )


def refusals() -> dict[str, str]:
    def message_of(make: Any, fsdp: dict[str, Any] | None = None, **settings: Any) -> str:
        torch.manual_seed(0)
        net = make()
        run = make_trainer(2, fsdp, max_epochs=1, **settings)
        data = loader(run, is_text=False)
        stage = run.predict if "callbacks" in settings else run.fit
        with pytest.raises((ConfigurationError, RuntimeError)) as caught:
            stage(net, data)
        return f"{type(caught.value).__name__}: {caught.value}"

    def half_sharded() -> Any:
        net = Classifier(mlp())
        net.configure_model = lambda: (  # type: ignore[method-assign]
            isinstance(net.network[0], FSDPModule)
            or fully_shard(net.network[0], mesh=net.device_mesh)
        )
        return net

    def by_hand() -> Any:
        net = Classifier(mlp())
        net.automatic_optimization = False
        net.scale = nn.Parameter(torch.ones(1))
        return net

    fused = lambda parameters: optimizers.fused_adamw(list(parameters), lr=0.1)  # noqa: E731
    plain = lambda: Classifier(mlp())  # noqa: E731
    return {
        "graphs": message_of(plain, callbacks=[HPUGraphCallback()]),
        "float16": message_of(plain, plugins=[HPUPrecision("16-mixed")]),
        "fused": message_of(lambda: Classifier(mlp(), fused)),
        "policy": message_of(plain, {"auto_wrap_policy": {nn.Conv2d}}),
        "checkpointing": message_of(plain, {"activation_checkpointing": {"Block"}}),
        "empty": message_of(lambda: Classifier(nn.ReLU())),
        "half": message_of(half_sharded),
        "by hand": message_of(by_hand),
        "peeking": message_of(lambda: Peeking(mlp())),
    }


@pytest.mark.slow
def test_refusals(tmp_path: Path) -> None:
    for found in values(run_ranks(tmp_path, refusals)):
        for name, words in {
            "graphs": "ConfigurationError: HPUGraphCallback cannot capture FSDPClassifier: its par",
            "float16": "takes precision '32-true', 'bf16-mixed', 'bf16-true', but it is '16-mixed'",
            "fused": "FusedAdamW is a kernel of the Gaudi software that does not know sharded",
            "policy": "auto_wrap_policy (Conv2d) names no module with parameters in Classifier",
            "checkpointing": "(Block) names no module with parameters in ",
            "empty": "Classifier has no parameters, so there is nothing to shard",
            "half": "sharded a part of Classifier, but not 'network.2.weight': its gradients would",
            "by hand": "'scale' is in none of network: it would not be whole when they need it",
            "peeking": "A sharded parameter was used where it is in parts. It is whole in the",
        }.items():
            assert words in found[name], found[name]


class OldModule(nn.Module, FSDPModule):
    """An FSDPModule of torch 2.6, which has no method for a sum."""

    def __new__(cls) -> OldModule:
        return nn.Module.__new__(cls)

    def __init__(self, group: Any) -> None:
        super().__init__()
        self.group = group

    def _get_fsdp_state(self) -> Any:
        return types.SimpleNamespace(_fsdp_param_group=self.group)


def old_module(monkeypatch: pytest.MonkeyPatch, group: Any) -> OldModule:
    monkeypatch.delattr(FSDPModule, "set_force_sum_reduction_for_comms", raising=False)
    made = OldModule.__new__(OldModule)
    made.__init__(group)  # type: ignore[misc]
    return made


def test_sums_in_releases_without_a_method_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    group = types.SimpleNamespace(reduce_scatter_reduce_op=None)
    root = nn.Sequential(old_module(monkeypatch, group), old_module(monkeypatch, None))
    assert modules.sum_gradients(root, 8) == 8
    assert group.reduce_scatter_reduce_op == ReduceOp.SUM
    root.append(old_module(monkeypatch, types.SimpleNamespace()))
    with pytest.raises(ConfigurationError, match=r"offers no sum .* Use torch 2\.9 or newer"):
        modules.sum_gradients(root, 8)


def test_where_pytorch_does_not_divide_the_strategy_does(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = GaudiFSDPStrategy("lazy")
    monkeypatch.setattr(strategy, "_loss_divisor", 4)
    net = Classifier(mlp(), lambda parameters: torch.optim.SGD(parameters, 1.0))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run = trainer(strategy=strategy, max_steps=1)
    data = loader(run, is_text=False)
    run.fit(net, data)
    batch = next(iter(data))
    loss = nn.functional.cross_entropy(
        torch.func.functional_call(net.network, _of_network(before), batch[0]), batch[1]
    )
    assert net.losses == [pytest.approx(loss.item())]  # logged as it is
    reference = Classifier(mlp())
    reference.load_state_dict(before)
    reference.loss(batch).backward()
    for name, parameter in reference.named_parameters():
        expected = before[name] - parameter.grad / 4  # type: ignore[operator]
        torch.testing.assert_close(net.state_dict()[name].cpu(), expected)


def _of_network(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("network."): value for name, value in state.items()}
