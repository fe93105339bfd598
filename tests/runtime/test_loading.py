"""Finding and loading the software, in the right mode or not at all."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import types

import pytest
import torch
from conftest import RunPython

from lightning_gaudi import GaudiStrategy, emulator
from lightning_gaudi.emulator import installation
from lightning_gaudi.errors import (
    ConfigurationError,
    ExecutionModeError,
    GaudiNotAvailableError,
)
from lightning_gaudi.runtime import environment, loading

WRONG_MODE = (
    "mode={mode!r} needs PT_HPU_LAZY_MODE={value}, but {found}. The mode is fixed when the Gaudi "
    "software loads, which recent releases do inside `import torch`; it cannot change in this "
    "process. To go on in it: GaudiStrategy(mode={other!r}). Else start Python anew with\n"
    "    export PT_HPU_LAZY_MODE={value}\n"
    "or let this do it:\n"
    "    lightning-gaudi run {command}"
)


@pytest.fixture
def _not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the software has not been loaded, so that its mode is open."""
    monkeypatch.setattr(loading, "is_loaded", lambda: False)
    monkeypatch.setattr(loading, "_value_set_here", None)


@pytest.mark.parametrize("mode", ["eager", "compile"])
def test_wrong_mode_after_loading(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train my model.py", "--lr", "0.1"])
    message = WRONG_MODE.format(
        mode=mode,
        value="0",
        other="lazy",
        found="the Gaudi software is loaded already, in lazy mode",
        command="--mode eager 'train my model.py' --lr 0.1",
    )
    calls = [loading.check_mode, loading.prepare, loading.load]
    # The strategy refuses compile before all else: another mode would not help.
    for call in [*calls, GaudiStrategy] if mode == "eager" else calls:
        with pytest.raises(ExecutionModeError, match=f"^{re.escape(message)}$"):
            call(mode)  # type: ignore[operator]


def test_wrong_mode_outside_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["-c"])
    with pytest.raises(ExecutionModeError, match=r"lightning-gaudi run --mode eager SCRIPT$"):
        loading.check_mode("eager")


@pytest.mark.usefixtures("_not_loaded")
@pytest.mark.parametrize(
    ("mode", "value", "exported"),
    [("lazy", "1", "0"), ("eager", "0", "1"), ("compile", "0", "1"), ("lazy", "1", "true")],
)
def test_environment_against_the_mode(
    monkeypatch: pytest.MonkeyPatch, mode: str, value: str, exported: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("PT_HPU_LAZY_MODE", exported)
    option = "" if mode == "lazy" else "--mode eager "
    message = WRONG_MODE.format(
        mode=mode,
        value=value,
        other="eager" if mode == "lazy" else "lazy",
        found=f"PT_HPU_LAZY_MODE={exported!r} is set",
        command=f"{option}train.py",
    )
    with pytest.raises(ExecutionModeError, match=f"^{re.escape(message)}$"):
        loading.prepare(mode)
    assert environment.lazy_mode() == exported


@pytest.mark.usefixtures("_not_loaded")
def test_a_later_strategy_may_overrule_ours_but_not_the_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "1")
    monkeypatch.delenv("PT_HPU_LAZY_MODE")
    loading.prepare("lazy")
    assert environment.lazy_mode() == "1"
    loading.prepare("eager")  # nothing has loaded yet, and the 1 was ours
    assert environment.lazy_mode() == "0"

    monkeypatch.setattr(loading, "_value_set_here", None)
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "1")
    loading.prepare("lazy")
    with pytest.raises(ExecutionModeError, match="PT_HPU_LAZY_MODE='1' is set"):
        loading.prepare("eager")
    assert environment.lazy_mode() == "1"


@pytest.mark.parametrize("mode", ["Lazy", "graph", "", None])
def test_unknown_mode(mode: str) -> None:
    message = f"mode must be one of 'lazy', 'eager', 'compile', but it is {mode!r}."
    for call in (loading.check_mode, loading.load, GaudiStrategy):
        with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
            call(mode)  # type: ignore[operator]


def test_the_mode_is_checked_after_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that decides by more than the variable does not go unnoticed."""
    monkeypatch.setattr(loading, "is_loaded", lambda: False)
    monkeypatch.setattr(loading, "is_lazy", lambda: False)
    with pytest.raises(ExecutionModeError, match="the Gaudi software came up in eager mode"):
        loading.load("lazy")


def test_loading_twice_is_nothing() -> None:
    loading.load("lazy")
    loading.load("lazy")
    assert loading.is_loaded()
    assert loading.is_lazy()
    assert loading.is_emulated()
    assert loading.is_software_present()


def test_no_software(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "habana_frameworks")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not loading.is_software_present()
    message = (
        "no HPU: the Gaudi software (habana_frameworks) is not installed in "
        f"{sys.executable}, and the emulated HPU was not asked for. {loading.REMEDIES}"
    )
    with pytest.raises(GaudiNotAvailableError, match=f"^{re.escape(message)}$"):
        loading.require_software()


def test_remedies_name_both_ways() -> None:
    assert "install the Gaudi software" in loading.REMEDIES
    assert "export LIGHTNING_GAUDI_EMULATOR=1" in loading.REMEDIES


# --- the emulator, where it cannot be -----------------------------------------------------------


@pytest.fixture
def _not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "_is_installed", False)


@pytest.mark.usefixtures("_not_installed")
def test_emulator_where_the_real_software_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    real = types.ModuleType("habana_frameworks")
    real.__file__ = "/usr/lib/habana_frameworks/__init__.py"
    monkeypatch.setitem(sys.modules, "habana_frameworks", real)
    message = (
        "the emulated HPU was asked for, but the real Gaudi software is loaded already "
        "(/usr/lib/habana_frameworks/__init__.py). Unset LIGHTNING_GAUDI_EMULATOR to use the card, "
        "or export TORCH_DEVICE_BACKEND_AUTOLOAD=0 beside it to emulate on this machine."
    )
    with pytest.raises(GaudiNotAvailableError, match=f"^{re.escape(message)}$"):
        loading.install_emulator_if_requested()


@pytest.mark.usefixtures("_not_installed")
def test_torch_too_old_for_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "habana_frameworks")
    monkeypatch.delattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend")
    message = (
        "the emulated HPU needs torch 2.10 or newer, which can have a backend written in Python, "
        f"but torch {torch.__version__} is installed. On a machine without a card: pip install "
        '"torch>=2.10". On a Gaudi node keep its torch and use the card.'
    )
    with pytest.raises(GaudiNotAvailableError, match=f"^{re.escape(message)}$"):
        loading.install_emulator_if_requested()


@pytest.mark.usefixtures("_not_installed")
def test_emulator_is_not_installed_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR", "0")
    loading.install_emulator_if_requested()
    assert not emulator.is_installed()


@pytest.mark.slow
def test_in_a_fresh_process(run_python: RunPython) -> None:
    """Mode and loading where nothing has happened yet; several checks for one Python."""

    def run(code: str, **variables: str | None) -> subprocess.CompletedProcess[str]:
        return run_python(code, args=("--lr", "0.1"), check=False, **variables)

    result = run(
        """
        import os
        import lightning_gaudi
        from lightning_gaudi import GaudiStrategy
        from lightning_gaudi.runtime import loading, metrics, step

        assert not loading.is_loaded()
        assert "PT_HPU_LAZY_MODE" not in os.environ
        step.mark_step()  # does nothing, and loads nothing
        assert not loading.is_loaded()
        none = metrics.counters()
        assert none == metrics.Counters(
            compilations=0, cache_hits=0, cpu_fallbacks=0, host_reads=0, host_copies=0
        ), none
        assert not loading.is_loaded()

        GaudiStrategy()
        assert os.environ["PT_HPU_LAZY_MODE"] == "1"
        assert not loading.is_loaded()
        GaudiStrategy("eager", recipe_cache_dir="recipes")
        assert os.environ["PT_HPU_RECIPE_CACHE_CONFIG"] == os.getcwd() + "/recipes,false,8192"
        import torch
        torch.ones(2, device="hpu") + 1  # the first use fixes the mode
        assert loading.is_loaded() and not loading.is_lazy()
        GaudiStrategy()
        """,
        PT_HPU_LAZY_MODE=None,
        PT_HPU_RECIPE_CACHE_CONFIG=None,
    )
    assert result.returncode == 1
    last = result.stderr.rstrip().splitlines()[-4:]
    assert last[0].startswith(
        "lightning_gaudi.errors.ExecutionModeError: mode='lazy' needs PT_HPU_LAZY_MODE=1, but the "
        "Gaudi software is loaded already, in eager mode."
    ), result.stderr
    assert last[1:4] == [
        "    export PT_HPU_LAZY_MODE=1",
        "or let this do it:",
        f"    lightning-gaudi run {result.args[3]} --lr 0.1",
    ]
