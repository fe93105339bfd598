"""How `hpu_backend` comes to be known, the options it takes, and the mode it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lightning_gaudi.emulator import accounting, mode, record
from lightning_gaudi.emulator.compile_backend import hpu_backend


@pytest.fixture(autouse=True)
def _eager_mode(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    accounting.flush("before eager mode")
    monkeypatch.setattr(mode, "_is_lazy", False)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return torch.compile(function, backend="hpu_backend", fullgraph=True, dynamic=False, **options)


def test_options_of_the_sdk_are_taken_and_others_refused(monkeypatch):
    x = torch.ones(2).to("hpu")

    def function(x: Tensor) -> Tensor:
        return functional.silu(x)

    options: dict[str, Any] = {"force_static_compile": True, "decomposition_mode": "core_aten"}
    with record() as events:
        result = compiled(function, options=options)(x)
    torch.testing.assert_close(result.cpu(), function(x).cpu())
    # Decomposed, it has more ops than one.
    assert int(events[0].detail.partition(" ")[0]) > 1
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="has no option 'fast'; it h"):
        compiled(function, options={"fast": True})(x)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="one of habana, core_aten"):
        compiled(function, options={"decomposition_mode": "all"})(x)
    with pytest.warns(UserWarning, match="use_graph_freezing: a card makes the weights constants"):
        compiled(function, options={"use_graph_freezing": True})(x)
    monkeypatch.setenv("PT_HPU_COMPILE_VERBOSE", "perhaps")
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="VERBOSE must be 0 or 1"):
        compiled(function, options={})(x)


def test_lazy_mode_is_refused(monkeypatch):
    monkeypatch.setattr(mode, "_is_lazy", True)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="PT_HPU_LAZY_MODE=0 before"):
        compiled(torch.relu)(torch.ones(2).to("hpu"))


def test_the_name_is_registered_where_the_sdk_registers_it():
    from habana_frameworks.torch.dynamo.compile_backend import backends, config

    assert backends.hpu_backend is hpu_backend
    assert "hpu_backend" in torch._dynamo.list_backends()
    assert config.use_compiled_recipes is True
    assert config.configuration_flags["decomposition_mode"] == "habana"
    with pytest.raises(AttributeError, match=r"compile_backend\.config\.nothing"):
        config.nothing  # noqa: B018
    config.configuration_flags["decomposition_mode"] = "none"
    try:
        assert config.decomposition_mode == "none"
    finally:
        config.decomposition_mode = "habana"


@pytest.mark.slow
def test_a_fresh_process_compiles_without_further_imports(run_python):
    result = run_python(
        """
        import sys
        import torch
        import lightning_gaudi.emulator

        lightning_gaudi.emulator.install()
        print("torch._dynamo" in sys.modules)
        model = torch.nn.Linear(2, 1).to("hpu")
        step = torch.compile(model, backend="hpu_backend", fullgraph=True, dynamic=False)
        loss = step(torch.ones(3, 2).to("hpu")).sum()
        loss.backward()
        print(model.weight.grad.tolist(), model.bias.grad.tolist(), loss.device)
        """,
        PT_HPU_LAZY_MODE="0",
    )
    assert result.stdout.splitlines()[-1] == "[[3.0, 3.0]] [3.0] hpu:0"
