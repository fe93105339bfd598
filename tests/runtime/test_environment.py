"""Environment variables: read, checked and written in one place."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lightning_gaudi.errors import ConfigurationError, ExecutionModeError
from lightning_gaudi.runtime import distributed, environment, loading


@pytest.mark.parametrize(
    ("value", "expected"), [(None, False), ("", False), ("0", False), ("1", True)]
)
def test_emulator_request(
    monkeypatch: pytest.MonkeyPatch, value: str | None, expected: bool
) -> None:
    if value is None:
        monkeypatch.delenv("LIGHTNING_GAUDI_EMULATOR")
    else:
        monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR", value)
    assert environment.is_emulator_requested() is expected


@pytest.mark.parametrize("value", ["true", "yes", "2", " 1"])
def test_emulator_request_that_cannot_be(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR", value)
    message = f"LIGHTNING_GAUDI_EMULATOR must be 1 (emulate the HPU) or 0, but it is {value!r}."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        environment.is_emulator_requested()


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), ("", None), ("all", None), ("0", ["0"]), ("2,5,", ["2", "5"])],
)
def test_visible_modules(
    monkeypatch: pytest.MonkeyPatch, value: str | None, expected: list[str] | None
) -> None:
    if value is not None:
        monkeypatch.setenv("HABANA_VISIBLE_MODULES", value)
    assert environment.visible_modules() == expected


def test_each_rank_takes_its_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HLS_MODULE_ID", "0")  # inherited from the process that launched us
    distributed.choose_card(3)
    assert os.environ["HLS_MODULE_ID"] == "3"
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "4,6")
    distributed.choose_card(1)
    assert os.environ["HLS_MODULE_ID"] == "6"


def test_recipe_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PT_HPU_RECIPE_CACHE_CONFIG", raising=False)
    monkeypatch.setattr(loading, "is_loaded", lambda: False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PT_HPU_RECIPE_CACHE_CONFIG", "")
    loading.set_recipe_cache("recipes")
    expected = f"{tmp_path}/recipes,false,8192"
    assert os.environ["PT_HPU_RECIPE_CACHE_CONFIG"] == expected


def test_recipe_cache_after_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    message = (
        "recipe_cache_dir must be set before the Gaudi software loads, but it is loaded. Export it "
        "instead, before Python starts:\n"
        "    export PT_HPU_RECIPE_CACHE_CONFIG=/some/where,false,8192"
    )
    with pytest.raises(ExecutionModeError, match=f"^{re.escape(message)}$"):
        loading.set_recipe_cache("/some/where")
    # The same setting, from an export or an earlier strategy, is nothing to complain of.
    monkeypatch.setenv("PT_HPU_RECIPE_CACHE_CONFIG", "/some/where,false,8192")
    loading.set_recipe_cache("/some/where")
