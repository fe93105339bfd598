"""`GaudiStrategy.from_gaudi_config`: optimum-habana's file does in Lightning what it says."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from training import IGNORED_WARNINGS, NUM_BATCHES, Classifier, conv_net, features, mlp, trainer

from lightning_gaudi import GaudiStrategy, HPUPrecision, emulator
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.fused_optimizer import fuse
from lightning_gaudi.gaudi_config import GaudiConfig
from lightning_gaudi.runtime import loading
from lightning_gaudi.runtime.optimizers import clip_norm, is_fused_adamw

pytestmark = IGNORED_WARNINGS

FUSED = {"use_fused_adam": True, "use_fused_clip_norm": True}


def fit(config: dict[str, Any] | None, module: Classifier, **settings: Any) -> L.Trainer:
    strategy = GaudiStrategy() if config is None else GaudiStrategy.from_gaudi_config(config)
    run = trainer("hpu", strategy=strategy, **settings)
    run.fit(module, features(), ckpt_path=settings.pop("ckpt_path", None))
    return run


def seeded(optimizer: Any, network: Any = mlp) -> Classifier:
    torch.manual_seed(0)
    return Classifier(network(), optimizer)


def adamw_with_schedule(weights: Any) -> dict[str, Any]:
    first, *others = weights
    optimizer = torch.optim.AdamW(
        [{"params": [first], "lr": 0.02, "weight_decay": 0.3}, {"params": others}], lr=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.02, 0.01], total_steps=20)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": schedule, "interval": "step"},
    }


@pytest.mark.parametrize(
    "optimizer",
    [
        adamw_with_schedule,
        lambda weights: torch.optim.Adam(weights, 0.01, betas=(0.8, 0.9), eps=1e-7),
        lambda weights: torch.optim.AdamW(weights, 0.01, weight_decay=0.0),
    ],
    ids=["groups and schedule", "adam", "no decay"],
)
def test_fused_adam_equals_torchs(optimizer: Any) -> None:
    fused, plain = seeded(optimizer), seeded(optimizer)
    run = fit(FUSED, fused, gradient_clip_val=0.5)
    reference = fit(None, plain, gradient_clip_val=0.5)
    assert is_fused_adamw(run.optimizers[0])
    assert type(reference.optimizers[0]) in (torch.optim.AdamW, torch.optim.Adam)
    torch.testing.assert_close(fused.losses, plain.losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        run.optimizers[0].param_groups, reference.optimizers[0].param_groups, strict=True
    ):
        assert {name: ours[name] for name in ("lr", "betas", "eps", "weight_decay")} == {
            name: theirs[name] for name in ("lr", "betas", "eps", "weight_decay")
        }


@pytest.mark.parametrize("started_fused", [True, False])
def test_a_resumed_run_equals_an_unbroken_one(started_fused: bool, tmp_path: Path) -> None:
    """Also from a checkpoint of torch's own, which counts its steps otherwise."""
    unbroken, first, second = (seeded(adamw_with_schedule) for _ in range(3))
    fit(FUSED, unbroken, max_epochs=3)
    run = fit(FUSED if started_fused else None, first)
    run.save_checkpoint(tmp_path / "last.ckpt")
    strategy = GaudiStrategy.from_gaudi_config(FUSED)
    resumed = trainer("hpu", strategy=strategy, max_epochs=3)
    resumed.fit(second, features(), ckpt_path=tmp_path / "last.ckpt")
    assert is_fused_adamw(resumed.optimizers[0])
    assert resumed.optimizers[0].param_groups[0]["step"] == 3 * NUM_BATCHES
    tolerance = 0.0 if started_fused else 1e-5
    for found, expected in ((second.losses, unbroken.losses[2 * NUM_BATCHES :]),):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        second.state_dict(), unbroken.state_dict(), rtol=tolerance, atol=tolerance
    )


def test_a_schedule_goes_on_after_a_state_is_loaded() -> None:
    weight = torch.nn.Parameter(torch.ones(2, device="hpu"))
    given = torch.optim.AdamW([weight], lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(given, 1, gamma=0.5)
    fused = fuse(given)
    assert given.param_groups is fused.param_groups
    for _ in range(2):
        weight.grad = torch.ones_like(weight)
        fused.step()
        schedule.step()
        fused.load_state_dict(fused.state_dict())
    schedule.step()
    assert [group["lr"] for group in fused.param_groups] == [0.125]
    assert fuse(fused) is fused
    with pytest.warns(UserWarning, match="AdamW has stepped already: it stays as it is"):
        other = torch.optim.AdamW([weight], lr=1.0)
        other.step()
        assert fuse(other) is other


@pytest.mark.parametrize(
    ("optimizer", "name", "obstacle"),
    [
        (lambda w: torch.optim.SGD(w, 0.1), "SGD", "is another optimizer"),
        (lambda w: torch.optim.AdamW(w, amsgrad=True), "AdamW", "has amsgrad=True"),
        (lambda w: torch.optim.AdamW(w, maximize=True), "AdamW", "has maximize=True"),
        (lambda w: torch.optim.Adam(w, weight_decay=0.1), "Adam",
         "adds its weight decay to the gradients"),
        (lambda w: torch.optim.AdamW(w, lr=torch.tensor(0.1), foreach=False), "AdamW",
         "has a tensor as a hyperparameter"),
    ],
    ids=["sgd", "amsgrad", "maximize", "coupled", "tensor"],
)  # fmt: skip
def test_optimizers_that_stay(optimizer: Any, name: str, obstacle: str) -> None:
    message = f"the Gaudi configuration asks for the fused Adam, but {name} {obstacle}: it stays"
    strategy = GaudiStrategy.from_gaudi_config({"use_fused_adam": True})
    run = trainer("hpu", strategy=strategy, max_steps=1)
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}"):
        run.fit(seeded(optimizer), features())
    assert type(run.optimizers[0]).__name__ == name


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_fused_clipping(precision: Any) -> None:
    """By value; it reads nothing on the host; and it is what the Trainer clips with."""
    norms = []
    for max_norm in (0.5, 100.0):
        torch.manual_seed(0)
        pairs = []
        for _ in range(3):
            weight = torch.nn.Parameter(torch.zeros(4, 3, device="hpu"))
            weight.grad = torch.randn(4, 3).to("hpu")
            other = torch.nn.Parameter(torch.zeros(4, 3))
            other.grad = weight.grad.cpu()
            pairs.append((weight, other))
        with emulator.record() as events:
            norm = clip_norm([pair[0] for pair in pairs], max_norm)
        assert [event.kind for event in events].count("host_read") == 0
        expected = torch.nn.utils.clip_grad_norm_([pair[1] for pair in pairs], max_norm)
        torch.testing.assert_close(norm.cpu()[0], expected)
        for weight, other in pairs:
            torch.testing.assert_close(weight.grad.cpu(), other.grad)
        norms.append(norm.item())
    assert norms[0] > 0.5

    modules = []
    for config in ({"use_fused_clip_norm": True}, {}):
        module = seeded(lambda weights: torch.optim.SGD(weights, 0.5), conv_net)
        strategy = GaudiStrategy.from_gaudi_config(config)
        run = trainer("hpu", strategy=strategy, precision=precision, gradient_clip_val=0.1)
        run.fit(module, features((1, 6, 6)))
        assert run.precision_plugin.uses_fused_clip_norm is bool(config)
        modules.append(module)
    close = {"rtol": 1e-5, "atol": 1e-5} if precision == "32-true" else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(modules[0].state_dict(), modules[1].state_dict(), **close)


def test_clipping_of_a_users_own_plugin() -> None:
    strategy = GaudiStrategy.from_gaudi_config(FUSED)

    class Mine(Precision):
        pass

    run = trainer("hpu", strategy=strategy, plugins=[Mine()], max_steps=1)
    with pytest.warns(UserWarning, match=r"^use_fused_clip_norm .* the precision plugin is Mine"):
        run.fit(seeded(None), features())


def test_autocast_becomes_the_precision() -> None:
    strategy = GaudiStrategy.from_gaudi_config({"use_torch_autocast": True}, mode="lazy")
    run = L.Trainer(accelerator="hpu", strategy=strategy, logger=False)
    assert type(run.precision_plugin) is HPUPrecision
    assert run.precision_plugin.precision == "bf16-mixed"
    strategy = GaudiStrategy.from_gaudi_config({"use_torch_autocast": False})
    run = L.Trainer(accelerator="hpu", strategy=strategy, precision="bf16-true", logger=False)
    assert run.precision_plugin.precision == "bf16-true"
    mine = HPUPrecision("bf16-mixed")
    strategy = GaudiStrategy.from_gaudi_config({"use_torch_autocast": True}, precision_plugin=mine)
    assert strategy.precision_plugin is mine


def test_two_precisions() -> None:
    message = (
        "use_torch_autocast of the Gaudi configuration means precision 'bf16-mixed', but "
        "precision_plugin is HPUPrecision('32-true'). Leave out one of them."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        GaudiStrategy.from_gaudi_config(
            {"use_torch_autocast": True}, precision_plugin=HPUPrecision("32-true")
        )


@pytest.fixture
def _lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that nothing is loaded; the lists are put back at the end."""
    monkeypatch.setattr(loading, "is_loaded", lambda: False)
    monkeypatch.setenv("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", "")
    monkeypatch.setenv("PT_HPU_AUTOCAST_FP32_OPS_LIST", "")


@pytest.mark.usefixtures("_lists")
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("form", ["dict", "file", "folder"])
def test_op_lists(autocast: bool, form: str, tmp_path: Path) -> None:
    """They are set whatever the precision is: Trainer(precision='bf16-mixed') may follow."""
    config: Any = {
        "use_torch_autocast": autocast,
        "autocast_bf16_ops": ["linear", "gelu"],
        "autocast_fp32_ops": ["softmax"],
        "optimum_version": "1.0",
    }
    if form != "dict":
        (tmp_path / "gaudi_config.json").write_text(json.dumps(config))
        config = str(tmp_path / "gaudi_config.json") if form == "file" else tmp_path
    GaudiStrategy.from_gaudi_config(config)
    lower = Path(os.environ["PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST"]).read_text().split()
    fp32 = Path(os.environ["PT_HPU_AUTOCAST_FP32_OPS_LIST"]).read_text().split()
    assert (lower, fp32) == (["linear", "gelu"], ["softmax"])


@pytest.fixture
def _switch() -> Iterator[None]:
    torch.hpu.disable_dynamic_shape()
    yield
    torch.hpu.disable_dynamic_shape()


@pytest.mark.usefixtures("_switch")
@pytest.mark.parametrize("is_on", [True, False])
def test_dynamic_shapes(is_on: bool) -> None:
    strategy = GaudiStrategy.from_gaudi_config({"use_dynamic_shapes": is_on})
    trainer("hpu", strategy=strategy, max_steps=1).fit(seeded(None), features())
    assert torch.hpu.get_dynamic_shape_status() is is_on


def test_unknown_and_old_settings() -> None:
    message = (
        "the Gaudi configuration has settings that are not known and change nothing here: "
        "use_fused_lamb, verbose. Known are: use_torch_autocast, autocast_bf16_ops, "
        "autocast_fp32_ops, use_dynamic_shapes, use_fused_adam, use_fused_clip_norm."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        GaudiConfig.read({"verbose": 1, "use_fused_lamb": True, "hmp_is_verbose": False})
    with pytest.warns(UserWarning, match=r"^use_habana_mixed_precision .* stands for use_torch"):
        found = GaudiConfig.read({"use_habana_mixed_precision": True, "hmp_bf16_ops": ["add"]})
    assert found == GaudiConfig(use_torch_autocast=True)
    with pytest.raises(ConfigurationError, match=r"has both use_torch_autocast and use_habana"):
        GaudiConfig.read({"use_habana_mixed_precision": True, "use_torch_autocast": True})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", " must be a JSON file, but "),
        ("[1]", " must hold a JSON object with settings, but it holds a list."),
        ('{"use_fused_adam": "yes"}', "use_fused_adam of the Gaudi configuration must be true or "
         "false, but it is 'yes'."),
        ('{"autocast_bf16_ops": "linear"}', "autocast_bf16_ops of the Gaudi configuration must be "
         "a list of names of ops, but it is 'linear'."),
    ],
    ids=["json", "list", "switch", "ops"],
)  # fmt: skip
def test_files_that_cannot_be(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        GaudiStrategy.from_gaudi_config(path)


@pytest.mark.parametrize("name", ["Habana/bert-base-uncased", "no_such_folder"])
def test_names_of_no_file(name: str) -> None:
    message = (
        "a Gaudi configuration must be a dict, a JSON file, or a folder with a gaudi_config.json, "
        f"but {name!r} cannot be read: "
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}") as raised:
        GaudiStrategy.from_gaudi_config(name)
    assert str(raised.value).endswith(
        "A name on the Hugging Face Hub is not looked up: download the file and give its path."
    )
