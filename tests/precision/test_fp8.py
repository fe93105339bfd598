"""fp8 by the Transformer Engine, on a stand-in of its API (``stand_in/``)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training import IGNORED_WARNINGS, Classifier, trainer

from lightning_gaudi import HPUGraphCallback, HPUPrecision
from lightning_gaudi.errors import ConfigurationError, HostReadError
from lightning_gaudi.runtime import device, transformer_engine

pytestmark = IGNORED_WARNINGS

STAND_IN = Path(__file__).parent / "stand_in"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, imported as ``intel_transformer_engine``; gone again after the test."""
    monkeypatch.syspath_prepend(STAND_IN)
    yield transformer_engine.load()
    for name in [name for name in sys.modules if name.startswith("intel_transformer_engine")]:
        del sys.modules[name]


def data(rows: int = 96) -> DataLoader[Any]:
    """Points of 16 numbers whose class a linear map tells, 16 a batch."""
    generator = torch.Generator().manual_seed(3)
    points = torch.randn(rows, 16, generator=generator)
    labels = (points @ torch.randn(16, 3, generator=generator)).argmax(1)
    return DataLoader(TensorDataset(points, labels), batch_size=16)


class Tied(nn.Module):
    """Two layers share a weight, one layer stands in two places, one is too small."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.second = nn.Linear(32, 32, bias=False)
        self.third = nn.Linear(32, 32)
        self.third.weight = self.second.weight
        self.again = nn.Sequential(nn.Tanh(), self.first)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.third(self.second(self.first(x)).tanh()).tanh())


UNFIT = "ignore:these linear layers do not compute in fp8"


def seeded(network: Any = Tied) -> Classifier:
    torch.manual_seed(0)
    return Classifier(network(), lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9))


def run_with(plugin: Precision | None, **settings: Any) -> Any:
    return trainer("hpu", plugins=[plugin] if plugin else None, **settings)


@pytest.mark.filterwarnings(UNFIT)
def test_layers_keep_their_weights(engine: Any) -> None:
    module = seeded()
    network = module.network
    before = dict(module.named_parameters(remove_duplicate=False))
    values = {name: value.clone() for name, value in module.state_dict().items()}
    network.eval()
    random = torch.get_rng_state()
    assert HPUPrecision("fp8").convert_module(module) is module
    assert torch.equal(torch.get_rng_state(), random)

    replaced = [name for name, inner in module.named_modules() if isinstance(inner, engine.Linear)]
    assert replaced == ["network.first", "network.second", "network.third"]
    assert network.again[1] is network.first
    assert type(network.head) is nn.Linear
    after = dict(module.named_parameters(remove_duplicate=False))
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert network.third.weight is network.second.weight
    assert not network.first.training
    assert list(module.state_dict()) == list(values)
    for name, value in module.state_dict().items():
        assert torch.equal(value, values[name])
    # Nothing is left on the meta device, where a new layer begins.
    assert network.second.bias.device.type == "cpu"
    module.to("hpu")
    assert {str(p.device) for p in module.parameters()} == {"hpu:0"}
    points = torch.randn(4, 16)
    expected = seeded().network(points)  # outside of a step layers compute as before
    torch.testing.assert_close(network(points.to("hpu")).cpu(), expected, rtol=1e-5, atol=1e-5)


def test_layers_of_another_dtype(engine: Any) -> None:
    network = nn.Sequential(nn.Linear(16, 16, dtype=torch.bfloat16))
    weight = network[0].weight
    HPUPrecision("fp8").convert_module(network)
    assert network[0].weight is weight
    assert network[0].bias.dtype is torch.bfloat16


@pytest.mark.filterwarnings(UNFIT)
def test_a_layer_twice_in_one_parent(engine: Any) -> None:
    fit, unfit = nn.Linear(16, 16), nn.Linear(3, 3)
    network = nn.Sequential(fit, nn.Tanh(), fit, unfit, unfit)
    HPUPrecision("fp8").convert_module(network)
    assert isinstance(network[0], engine.Linear)
    assert network[2] is network[0]
    assert network[3] is network[4] is unfit


def test_what_does_not_fit_is_named(engine: Any) -> None:
    message = (
        "these linear layers do not compute in fp8, because their sizes are no multiples of 16: "
        "network.head. skip_layers silences this."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        HPUPrecision("fp8").convert_module(seeded())
    HPUPrecision("fp8", skip_layers=["network.head"]).convert_module(seeded())


@pytest.mark.parametrize(
    ("skip", "kept"),
    [
        ("*.head", ["head"]),
        (["network.second", "*.head"], ["second", "head"]),
        (["network.again", "network.head"], ["first", "head"]),  # the layer in both its places
        (["network"], ["first", "second", "third", "head"]),
    ],
    ids=["text", "list", "inside", "all"],
)
def test_layers_to_skip(skip: Any, kept: list[str], engine: Any) -> None:
    module = seeded()
    HPUPrecision("fp8", skip_layers=skip).convert_module(module)
    found = [name for name, inner in module.network.named_children() if type(inner) is nn.Linear]
    assert found == kept


def test_skipping_what_is_not_there(engine: Any) -> None:
    message = (
        "skip_layers must name modules of the model, but 'lm_head' fits none. Its modules: "
        "network, network.first, network.second, network.third, network.again, network.again.0, "
        "network.again.1, network.head."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        HPUPrecision("fp8", skip_layers=["*.head", "lm_head"]).convert_module(seeded())


def test_subclasses_and_own_layers_are_left_alone(engine: Any) -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    network = nn.Sequential(Scaled(16, 16))
    HPUPrecision("fp8").convert_module(network)
    assert type(network[0]) is Scaled

    network = nn.Sequential(nn.Linear(16, 16), engine.Linear(16, 16))
    HPUPrecision("fp8").convert_module(network)
    assert type(network[0]) is nn.Linear
    assert "1._extra_state" in network.state_dict()  # the user's layer is the user's
    HPUPrecision("fp8", replace_layers=True).convert_module(network)
    assert type(network[0]) is engine.Linear
    network = nn.Sequential(nn.Linear(16, 16))
    HPUPrecision("fp8", replace_layers=False).convert_module(network)
    assert type(network[0]) is nn.Linear


def test_training_in_fp8(engine: Any) -> None:
    """Close to bfloat16, not equal to it, and it learns."""
    modules = []
    for plugin in (HPUPrecision("fp8", skip_layers=["*.head"]), HPUPrecision("bf16-mixed")):
        modules.append(seeded())
        run_with(plugin, max_epochs=6).fit(modules[-1], data())
    fp8, bf16 = modules
    torch.testing.assert_close(fp8.losses[:6], bf16.losses[:6], rtol=0.1, atol=0.1)
    assert fp8.losses[0] != bf16.losses[0]
    assert sum(fp8.losses[-6:]) < 0.5 * sum(fp8.losses[:6])
    history = fp8.network.first.fp8_meta["amax_history"]
    assert history.shape == (1, 3)
    assert (history > 0).all()


@pytest.mark.parametrize("as_mapping", [True, False])
def test_the_recipe_is_used(as_mapping: bool, engine: Any) -> None:
    losses = []
    for name in ("HYBRID", "E5M2"):
        fields: dict[str, Any] = {"fp8_format": name, "amax_history_len": 4}
        recipe = fields
        if not as_mapping:
            fields["fp8_format"] = engine.recipe.Format[name]
            recipe = engine.recipe.DelayedScaling(**fields)
        module = seeded()
        run_with(HPUPrecision("fp8", recipe=recipe, skip_layers=["*.head"])).fit(module, data())
        assert module.network.first.fp8_meta["amax_history"].shape == (4, 3)
        losses.append(module.losses)
    assert losses[0] != losses[1]


@pytest.mark.filterwarnings(UNFIT)
def test_a_resumed_run_equals_an_unbroken_one(engine: Any, tmp_path: Path) -> None:
    """The scales go on too: they are in the checkpoint, beside the weights."""

    def plugin() -> HPUPrecision:
        return HPUPrecision("fp8", recipe={"amax_history_len": 3})

    unbroken, first, second, third = (seeded() for _ in range(4))
    run_with(plugin(), max_epochs=3).fit(unbroken, data())
    run = run_with(plugin(), max_epochs=2)
    run.fit(first, data())
    run.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert list(checkpoint["state_dict"]) == list(seeded().state_dict())
    assert list(checkpoint["HPUPrecision"]["fp8_layers"]) == [
        "network.first",
        "network.second",
        "network.third",
    ]
    run_with(plugin(), max_epochs=3).fit(second, data(), ckpt_path=tmp_path / "last.ckpt")
    assert second.losses == unbroken.losses[12:]
    torch.testing.assert_close(second.state_dict(), unbroken.state_dict(), rtol=0, atol=0)

    del checkpoint["HPUPrecision"]  # the scales matter: without them it goes on otherwise
    torch.save(checkpoint, tmp_path / "bare.ckpt")
    run_with(plugin(), max_epochs=3).fit(third, data(), ckpt_path=tmp_path / "bare.ckpt")
    assert third.losses != second.losses


@pytest.mark.filterwarnings(UNFIT)
def test_checkpoints_go_both_ways(engine: Any, tmp_path: Path) -> None:
    fp8 = seeded()
    run = run_with(HPUPrecision("fp8"))
    run.fit(fp8, data())
    run.save_checkpoint(tmp_path / "fp8.ckpt")
    plain = seeded()
    trainer("cpu", max_epochs=3).fit(plain, data(), ckpt_path=tmp_path / "fp8.ckpt")
    plain = seeded()
    plain.load_state_dict(torch.load(tmp_path / "fp8.ckpt", weights_only=True)["state_dict"])
    torch.testing.assert_close(plain.state_dict(), fp8.state_dict(), rtol=0, atol=0)

    other = seeded()
    HPUPrecision("fp8").convert_module(other)
    other.load_state_dict(plain.state_dict())  # strictly, without entries of the engine
    torch.testing.assert_close(other.state_dict(), plain.state_dict(), rtol=0, atol=0)
    stock = seeded()
    run = trainer("cpu")
    run.fit(stock, data())
    run.save_checkpoint(tmp_path / "stock.ckpt")
    resumed = seeded()
    run_with(HPUPrecision("fp8"), max_epochs=3).fit(
        resumed, data(), ckpt_path=tmp_path / "stock.ckpt"
    )
    assert len(resumed.losses) == 6
    assert isinstance(resumed.network.first, engine.Linear)


@pytest.mark.filterwarnings(UNFIT)
@pytest.mark.parametrize("replace_layers", [None, True])
def test_a_second_run_keeps_the_scales(replace_layers: bool | None, engine: Any) -> None:
    """The module is converted again in each run, also by another plugin."""
    module = seeded()
    for _ in range(2):
        plugin = HPUPrecision("fp8", replace_layers=replace_layers)
        for _ in range(2):
            run_with(plugin).fit(module, data())
            states = plugin.state_dict()["fp8_layers"]
            assert list(states) == ["network.first", "network.second", "network.third"]
    predictions = run_with(plugin).predict(module, data())
    assert {p.dtype for p in predictions} == {torch.bfloat16}


def test_graphs_are_refused_or_left_out(engine: Any) -> None:
    """Scales are no buffers of a layer, so a graph would keep those of its first call."""

    def run(*callbacks: HPUGraphCallback) -> Any:
        module = seeded()
        plugin = HPUPrecision("fp8", skip_layers=["*.head"])
        runner = run_with(plugin, callbacks=list(callbacks))
        runner.fit(module, data(), data())
        return runner.predict(module, data())

    with pytest.raises(HostReadError, match=r"uses a device tensor .* neither an argument nor a"):
        run(HPUGraphCallback())
    with pytest.warns(UserWarning, match="uses a device tensor"):
        found = run(HPUGraphCallback(on_failure="eager"))
    torch.testing.assert_close(found, run(), rtol=0, atol=0)


@pytest.mark.parametrize("is_broken", [False, True])
def test_the_context_ends(is_broken: bool, engine: Any) -> None:
    fp8 = sys.modules["intel_transformer_engine.fp8"]
    outcome = pytest.raises(KeyError) if is_broken else nullcontext()
    with outcome, HPUPrecision("fp8").forward_context():
        assert fp8.is_enabled
        assert torch.is_autocast_enabled("hpu")
        if is_broken:
            raise KeyError
    assert not fp8.is_enabled
    assert not torch.is_autocast_enabled("hpu")


@pytest.mark.parametrize(
    "recipe", [{"fp8_format": "E9M9"}, {"no": 1}, {"amax_compute_algo": "least"}]
)
def test_wrong_recipes(recipe: dict[str, Any], engine: Any) -> None:
    message = (
        "recipe must be a DelayedScaling recipe of the Transformer Engine, or its fields (margin, "
        f"interval, fp8_format, amax_history_len, ...), but {recipe!r} is refused: "
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}"):
        HPUPrecision("fp8", recipe=recipe).convert_module(nn.Linear(16, 16))


MISSING = (
    "precision='fp8' needs Intel's Transformer Engine for Gaudi, but there is neither "
    "intel_transformer_engine nor habana_frameworks.torch.hpex.experimental.transformer_engine. "
    "Install the wheel intel_transformer_engine of your release of the Gaudi software (it needs a "
    "Gaudi 2 or newer; the emulated HPU has none), or use precision='bf16-mixed', 'bf16-true', "
    "'16-mixed' or '32-true'."
)


def test_without_the_engine() -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(MISSING)}$"):
        HPUPrecision("fp8")


def test_the_engine_within_older_software(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "torch" / "hpex" / "experimental" / "transformer_engine"
    folder.mkdir(parents=True)
    spec = sys.modules["habana_frameworks"].__spec__
    assert spec is not None
    monkeypatch.setattr(spec, "submodule_search_locations", [str(tmp_path)])
    with pytest.raises(ConfigurationError):
        transformer_engine.require()
    (folder / "__init__.py").touch()
    transformer_engine.require()


def test_a_first_generation_card(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "name", lambda: "GAUDI")
    with pytest.raises(ConfigurationError, match=r"^precision='fp8' needs a Gaudi 2 or newer"):
        HPUPrecision("fp8")


@pytest.mark.parametrize(
    "settings", [{"recipe": {}}, {"replace_layers": True}, {"skip_layers": ["head"]}]
)
def test_settings_for_fp8_alone(settings: dict[str, Any]) -> None:
    (name,) = settings
    message = f"{name} is for precision 'fp8', but the precision is 'bf16-mixed'. Leave it out."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        HPUPrecision("bf16-mixed", **settings)
