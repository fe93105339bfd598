"""Putting the emulator into a process, the names it answers to, and when it refuses."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from lightning_gaudi import emulator

NAMES = {
    "habana_frameworks.torch": ["core", "hpu", "utils"],
    "habana_frameworks.torch.core": ["mark_step", "is_lazy", "hpu"],
    "habana_frameworks.torch.utils.internal": ["is_lazy"],
    "habana_frameworks.torch.hpu": [
        "is_available",
        "device_count",
        "current_device",
        "get_device_name",
        "synchronize",
        "set_device",
        "device",
        "is_autocast_hpu_enabled",
        "memory_stats",
        "memory_allocated",
        "max_memory_allocated",
        "memory_reserved",
        "mem_get_info",
        "reset_peak_memory_stats",
        "reset_accumulated_memory_stats",
        "HPUGraph",
        "graph",
        "random",
        "metrics",
    ],
    "habana_frameworks.torch.hpu.random": [
        "get_rng_state",
        "get_rng_state_all",
        "initial_seed",
        "manual_seed",
        "manual_seed_all",
        "seed",
        "seed_all",
        "set_rng_state",
        "set_rng_state_all",
    ],
    "habana_frameworks.torch.hpu.metrics": ["metric_global"],
    "habana_frameworks.torch.hpu.graphs": ["HPUGraph", "graph", "is_current_stream_capturing"],
}


@pytest.fixture
def run_emulator(run_python):
    """Like `run_python`, without the rest of the package: `emulator` is not installed yet."""
    package = Path(emulator.__file__).parents[1]
    start = f"""
import sys, types
package = sys.modules["lightning_gaudi"] = types.ModuleType("lightning_gaudi")
package.__path__ = [{str(package)!r}]
from lightning_gaudi import emulator
"""

    def run(code, **options):
        return run_python(start + textwrap.dedent(code), **options)

    return run


@pytest.mark.parametrize("module", NAMES)
def test_the_sdks_names_are_there(module):
    imported = importlib.import_module(module)
    for name in NAMES[module]:
        assert hasattr(imported, name), name
    assert imported.__spec__ is not None
    assert imported.__spec__.name == module
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("module", NAMES)
def test_a_missing_name_is_named(module):
    imported = importlib.import_module(module)
    assert not hasattr(imported, "no_such_name")
    with pytest.raises(AttributeError, match=rf"the emulated HPU has no {module}\.no_such_name"):
        imported.no_such_name  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'no_such_name'"):
        exec(f"from {module} import no_such_name")


def test_a_missing_module_is_missing():
    assert importlib.util.find_spec("habana_frameworks.no_such_module") is None
    assert importlib.util.find_spec("habana_frameworks.torch.no_such_module") is None
    message = r"the emulated HPU has no module habana_frameworks\.torch\.no_such_module\. If the G"
    with pytest.raises(ModuleNotFoundError, match=message) as raised:
        importlib.import_module("habana_frameworks.torch.no_such_module")
    assert raised.value.name == "habana_frameworks.torch.no_such_module"
    with pytest.raises(ModuleNotFoundError, match="the emulated HPU has no module"):
        import habana_frameworks.no_such_module  # noqa: F401


def test_importing_makes_the_sdks_module_torch_hpu():
    module = importlib.import_module("habana_frameworks.torch.hpu")
    assert torch.hpu is module
    assert torch.hpu.HPUGraph is module.HPUGraph


def test_installing_again_does_nothing():
    finders = list(sys.meta_path)
    swap = torch.utils.swap_tensors
    emulator.install()
    assert emulator.is_installed()
    assert list(sys.meta_path) == finders
    assert torch.utils.swap_tensors is swap


def test_not_installed_unless_asked_for(run_python):
    code = """
        import importlib.util, torch, lightning_gaudi
        from lightning_gaudi import emulator
        assert not emulator.is_installed()
        assert importlib.util.find_spec("habana_frameworks") is None
        try:
            torch.ones(1, device="hpu")
        except (RuntimeError, ImportError):
            print("refused")
        emulator.install()
        print(torch.ones(1).to("hpu").device, torch.hpu.is_available())
    """
    assert run_python(code, LIGHTNING_GAUDI_EMULATOR=None).stdout == "refused\nhpu:0 True\n"


def test_it_needs_nothing_else_of_the_package(run_emulator):
    code = """
        emulator.install()
        import torch
        print(torch.ones(1, device="hpu").device, emulator.is_mode_fixed())
        ours = {name.split(".")[1] for name in sys.modules if name.startswith("lightning_gaudi.")}
        print(ours, "lightning" in sys.modules)
    """
    assert run_emulator(code).stdout == "hpu:0 True\n{'emulator'} False\n"


def test_it_refuses_where_the_real_software_is_loaded(run_emulator, tmp_path):
    package = tmp_path / "habana_frameworks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    code = """
        import habana_frameworks
        try:
            emulator.install()
        except emulator.EmulatorError as error:
            print(error)
        assert not emulator.is_installed()
    """
    output = run_emulator(code).stdout
    assert "the real Gaudi software is loaded already" in output
    assert str(package / "__init__.py") in output
    assert "Unset LIGHTNING_GAUDI_EMULATOR" in output


def test_it_refuses_an_old_torch_and_an_occupied_slot(run_emulator):
    code = """
        import torch
        from torch.utils import backend_registration

        def refusal():
            try:
                emulator.install()
            except emulator.EmulatorError as error:
                print(error)
            assert not emulator.is_installed()

        kept = backend_registration._setup_privateuseone_for_python_backend
        del backend_registration._setup_privateuseone_for_python_backend
        refusal()
        backend_registration._setup_privateuseone_for_python_backend = kept
        torch.utils.rename_privateuse1_backend("other")
        refusal()
    """
    old, slot = run_emulator(code).stdout.splitlines()
    assert "needs torch 2.10 or newer" in old
    assert f"torch {torch.__version__} is installed" in old
    assert 'pip install "torch>=2.10"' in old
    assert "needs PyTorch's slot for outside backends, but 'other' has it" in slot


def test_the_mode_is_read_once_and_wins_over_an_installed_sdk(run_emulator, tmp_path):
    package = tmp_path / "habana_frameworks"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('the real one')")
    code = """
        import os, torch
        emulator.install()
        os.environ["PT_HPU_LAZY_MODE"] = "yes"
        try:
            torch.ones(1, device="hpu")
        except ValueError as error:
            print(error)
        assert not emulator.is_mode_fixed()
        os.environ["PT_HPU_LAZY_MODE"] = "1"
        torch.ones(1, device="hpu")
        assert emulator.is_mode_fixed()
        os.environ["PT_HPU_LAZY_MODE"] = "0"
        import habana_frameworks.torch.core as htcore
        print(htcore.is_lazy())
    """
    refusal, is_lazy = run_emulator(code, PT_HPU_LAZY_MODE=None).stdout.splitlines()
    assert "PT_HPU_LAZY_MODE must be 0 (eager) or 1 (lazy), but it is 'yes'" in refusal
    assert is_lazy == "True"


@pytest.mark.parametrize("value", ["1", "8", "16"])
def test_the_number_of_cards(monkeypatch, value):
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_DEVICES", value)
    assert emulator.device_count() == int(value)
    assert torch.hpu.device_count() == int(value)
    monkeypatch.undo()


@pytest.mark.parametrize("value", ["0", "-1", "", "two", "1.5", " ", "²"])
def test_a_number_of_cards_that_is_none(monkeypatch, value):
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_DEVICES", value)
    with pytest.raises(ValueError, match=r"LIGHTNING_GAUDI_EMULATOR_DEVICES must be a whole numb"):
        emulator.device_count()
    monkeypatch.undo()


def test_eager_mode(run_emulator):
    """Eager is the default, has no marks, no flushes and no graphs, and compiles op by op."""
    code = """
        emulator.install()
        import torch
        import habana_frameworks.torch.core as htcore
        from habana_frameworks.torch import hpu
        from habana_frameworks.torch.hpu.metrics import metric_global
        assert not htcore.is_lazy()
        graph_names = ("HPUGraph", "graph", "graphs", "wrap_in_hpu_graph")
        assert not any(hasattr(hpu, name) for name in graph_names)
        with emulator.record() as events:
            for _ in range(2):
                x = torch.ones(3).to("hpu")
                y = (x * 2 + 1).relu()
                htcore.mark_step()
                assert y.cpu().tolist() == [3.0, 3.0, 3.0]
        kinds = [event.kind for event in events]
        assert "mark_step" not in kinds and "flush" not in kinds, kinds
        assert kinds.count("compile") == 3, kinds
        cache = dict(metric_global("recipe_cache").stats())
        assert (cache["TotalMiss"], cache["TotalHit"]) == (3, 3), cache
        linear = torch.nn.Linear(3, 1).to("hpu")
        linear(x).backward()
        assert linear.weight.grad.tolist() == [[1.0, 1.0, 1.0]]
        print("done")
    """
    for mode in ("0", None):
        assert run_emulator(code, PT_HPU_LAZY_MODE=mode).stdout == "done\n"
