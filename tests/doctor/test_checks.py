"""Each planted fault is found, alone, with the command that mends it."""

from __future__ import annotations

import pytest
from doctor.machines import BRIDGE, card, folder, gaudi, laptop, lazy, trouble

from lightning_gaudi.data import plan
from lightning_gaudi.doctor import releases
from lightning_gaudi.doctor.checks import check_all
from lightning_gaudi.doctor.findings import is_usable
from lightning_gaudi.runtime.facts import Loading

CACHE = "PT_HPU_RECIPE_CACHE_CONFIG"
LISTS = "PT_HPU_AUTOCAST_FP32_OPS_LIST"


def test_nothing_is_wrong_with_a_good_machine():
    for facts in (gaudi(), laptop()):
        assert trouble(facts) == []
        assert is_usable(check_all(facts))
    found = {f.check: (f.level, f.found) for f in check_all(gaudi())}
    assert found["software"] == ("ok", "1.21.0.555")
    assert found["driver"] == ("ok", "1.21.0-abcdef0")
    assert found["cards"] == ("ok", "8 with PCI id 0x1020")
    assert found["loading"] == ("ok", "in 3.0 s, in lazy mode; cards: 8")
    found = {f.check: (f.level, f.found) for f in check_all(laptop())}
    assert found["cards"] == ("ok", "1, emulated")
    assert found["emulator"] == ("ok", "asked for")


PLANTED = {
    "wrong mode": (
        gaudi(variables={"PT_HPU_LAZY_MODE": "0"}),
        ("mode", "fault", "which is eager mode", "export PT_HPU_LAZY_MODE=1"),
    ),
    "rubbish mode": (
        gaudi(variables={"PT_HPU_LAZY_MODE": "yes"}),
        ("mode", "fault", "PT_HPU_LAZY_MODE='yes'", "export PT_HPU_LAZY_MODE=1"),
    ),
    "mode not set on 1.21": (
        gaudi(variables={}, loading=None),
        ("mode", "warning", "1.21.0.555 loads in eager mode", "export PT_HPU_LAZY_MODE=1"),
    ),
    "mode not set, as it came up": (
        gaudi(variables={}, loading=Loading(seconds=1, is_lazy=False, num_cards=8)),
        ("mode", "warning", "loads in eager mode", "export PT_HPU_LAZY_MODE=1"),
    ),
    "old torch": (
        gaudi(versions={"torch": "2.5.1+hpu_1.19.0"}),
        ("torch", "fault", "2.5.1+hpu_1.19.0", "habanalabs-installer.sh install -t pytorch"),
    ),
    "old torch for the emulator": (
        laptop(versions={BRIDGE: None, "torch": "2.6.0"}),
        ("torch", "fault", "2.6.0", 'pip install "torch>=2.10"'),
    ),
    "no torch": (
        laptop(versions={BRIDGE: None, "torch": None}),
        ("torch", "fault", "not installed", 'pip install "torch>=2.10"'),
    ),
    "missing bridge": (
        gaudi(versions={BRIDGE: None}, loading=None),
        ("software", "fault", "no habana_frameworks", "export LIGHTNING_GAUDI_EMULATOR=1"),
    ),
    "old bridge": (
        gaudi(versions={BRIDGE: "1.19.0.1"}, driver={"version": "1.19.0-abc"}),
        ("software", "fault", "1.19.0.1", "Installation_Guide"),
    ),
    "another torch": (
        gaudi(versions={"torch": "2.6.0+cpu"}),
        ("torch_build", "fault", "2.6.0+cpu, which is not Habana's", "habanalabs-installer.sh"),
    ),
    "torch from PyPI": (
        gaudi(versions={"torch": "2.6.0"}),
        ("torch_build", "fault", "2.6.0, which is not Habana's", "habanalabs-installer.sh"),
    ),
    "torch of another release": (
        gaudi(versions={"torch": "2.7.1+hpu_1.22.0-740.git1"}),
        ("torch_release", "fault", "torch 2.7.1+hpu_1.22.0-740.git1 beside", "habanalabs-install"),
    ),
    "two Lightnings": (
        gaudi(versions={"pytorch-lightning": "2.4.0"}),
        ("two_lightnings", "warning", "2.4.0 beside lightning 2.6.0", "pytorch-lightning==2.6.0"),
    ),
    "the other Lightning": (
        gaudi(versions={"lightning": None, "pytorch-lightning": "2.6.0"}),
        ("lightning", "fault", "pytorch-lightning 2.6.0 is, whose classes", '"lightning>=2.5.6"'),
    ),
    "old Lightning": (
        gaudi(versions={"lightning": "2.5.5"}),
        ("lightning", "fault", "2.5.5", 'pip install --upgrade "lightning>=2.5.6"'),
    ),
    "lightning-habana": (
        gaudi(versions={"lightning-habana": "1.6.0"}),
        ("lightning_habana", "fault", "1.6.0", "pip uninstall --yes lightning-habana"),
    ),
    "optimum-habana": (
        gaudi(versions={"optimum-habana": "1.19.0"}),
        ("optimum_habana", "warning", "1.19.0", "pip uninstall --yes optimum-habana"),
    ),
    "old Transformers": (
        gaudi(versions={"transformers": "4.49.0"}),
        ("transformers", "warning", "4.49.0", 'pip install --upgrade "transformers>=4.56"'),
    ),
    "old Python": (
        gaudi(python="3.9.18"),
        ("python", "fault", "3.9.18", "python3.11 -m venv"),
    ),
    "no driver": (
        gaudi(driver={"is_loaded": False, "version": None}),
        ("driver", "fault", "habanalabs is not loaded", "sudo modprobe habanalabs"),
    ),
    "driver of another release": (
        gaudi(driver={"version": "1.20.1-abc"}),
        ("driver", "warning", "driver 1.20.1-abc beside Gaudi software 1.21.0.555", "upgrade"),
    ),
    "hl-smi fails": (
        gaudi(driver={"hl_smi_error": "no answer within 20 s"}),
        ("hl_smi", "warning", "/usr/bin/hl-smi fails: no answer within 20 s", "dmesg"),
    ),
    "no cards": (
        gaudi(driver={"cards": ()}),
        ("cards", "fault", "none under /sys/class/accel", "docker run --runtime=habana"),
    ),
    "no permission": (
        gaudi(driver={"cards": (card(0, is_accessible=False),)}),
        ("card_access", "fault", "may not open accel0", "ls -l /dev/accel"),
    ),
    "a card in trouble": (
        gaudi(driver={"cards": (card(0), card(1, status="disabled"))}),
        ("card_status", "warning", "accel1 is disabled", "hl-smi"),
    ),
    "more cards than there are": (
        gaudi(variables=lazy(HABANA_VISIBLE_MODULES="0,1,2,3,4,5,6,7,8")),
        ("visible_modules", "fault", "it names 9 cards, but there are 8", "unset HABANA_VISIBLE"),
    ),
    "rubbish cards": (
        gaudi(variables=lazy(HABANA_VISIBLE_MODULES="first")),
        ("visible_modules", "fault", "'first': it must be module ids", "unset HABANA_VISIBLE"),
    ),
    "a card twice": (
        gaudi(variables=lazy(HABANA_VISIBLE_MODULES="3,3")),
        ("visible_modules", "fault", "it names a card twice", "unset HABANA_VISIBLE_MODULES"),
    ),
    "an inherited module id": (
        gaudi(variables=lazy(HLS_MODULE_ID="0")),
        ("module_id", "warning", "HLS_MODULE_ID='0' is exported outside of a rank", "unset HLS"),
    ),
    "emulator beside the software": (
        gaudi(variables=lazy(LIGHTNING_GAUDI_EMULATOR="1")),
        ("emulator", "fault", "beside the real Gaudi software", "unset LIGHTNING_GAUDI_EMULATOR"),
    ),
    "rubbish emulator": (
        gaudi(variables=lazy(LIGHTNING_GAUDI_EMULATOR="on")),
        ("emulator", "fault", "LIGHTNING_GAUDI_EMULATOR='on'", "LIGHTNING_GAUDI_EMULATOR=1"),
    ),
    "rubbish number of emulated cards": (
        laptop(
            variables={"LIGHTNING_GAUDI_EMULATOR": "1", "LIGHTNING_GAUDI_EMULATOR_DEVICES": "all"}
        ),
        ("cards", "fault", "LIGHTNING_GAUDI_EMULATOR_DEVICES='all'", "DEVICES=1"),
    ),
    "recipe cache without commas": (
        gaudi(variables=lazy(**{CACHE: "/cache"}), paths={CACHE: folder("/cache")}),
        ("recipe_cache", "fault", "must be PATH,DELETE_AT_START,SIZE_IN_MB", f"export {CACHE}="),
    ),
    "recipe cache that cannot be written": (
        gaudi(
            variables=lazy(**{CACHE: "/root/c,false,1024"}),
            paths={CACHE: folder("/root/c", exists=False, is_writable=False)},
        ),
        ("recipe_cache", "fault", "/root/c cannot be written", f"export {CACHE}="),
    ),
    "recipe cache in a file": (
        gaudi(
            variables=lazy(**{CACHE: "/x,false,1024"}), paths={CACHE: folder("/x", is_file=True)}
        ),
        ("recipe_cache", "fault", "/x is a file", f"export {CACHE}="),
    ),
    "recipe cache without a folder": (
        gaudi(variables=lazy(**{CACHE: ",false,1024"})),
        ("recipe_cache", "fault", "it names no folder", f"export {CACHE}="),
    ),
    "ops on the CPU": (
        gaudi(variables=lazy(PT_HPU_PLACE_ON_CPU="add")),
        ("place_on_cpu", "warning", "PT_HPU_PLACE_ON_CPU='add'", "unset PT_HPU_PLACE_ON_CPU"),
    ),
    "no autoload": (
        gaudi(variables=lazy(TORCH_DEVICE_BACKEND_AUTOLOAD="0")),
        ("autoload", "warning", "TORCH_DEVICE_BACKEND_AUTOLOAD=0", "unset TORCH_DEVICE_BACKEND"),
    ),
    "a missing list of ops": (
        gaudi(
            variables=lazy(**{LISTS: "/nowhere"}), paths={LISTS: folder("/nowhere", exists=False)}
        ),
        ("autocast_lists", "fault", f"{LISTS}='/nowhere', and there is no such", f"unset {LISTS}"),
    ),
    "a misspelt variable": (
        gaudi(variables=lazy(PT_HPU_LAZYMODE="1")),
        ("spelling", "warning", "PT_HPU_LAZYMODE is set, which", "export PT_HPU_LAZY_MODE=1"),
    ),
    "loading hangs": (
        gaudi(loading=Loading(seconds=60, error="not loaded within 60 s")),
        ("loading", "fault", "not loaded within 60 s", "import habana_frameworks.torch.core"),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name):
    facts, (check, level, found, fix) = PLANTED[name]
    findings = trouble(facts)
    assert [(f.check, f.level) for f in findings] == [(check, level)]
    assert found in findings[0].found
    assert findings[0].expected
    assert fix in findings[0].fix
    assert is_usable(check_all(facts)) == (level != "fault")


def test_what_is_no_fault():
    for facts in (
        gaudi(variables=lazy(HABANA_VISIBLE_MODULES="0,5")),
        gaudi(variables=lazy(HABANA_VISIBLE_MODULES="all")),
        gaudi(variables=lazy(HLS_MODULE_ID="3", LOCAL_RANK="3")),
        gaudi(variables=lazy(PT_HPU_PLACE_ON_CPU="none")),
        gaudi(variables=lazy(PT_HPU_SOMETHING_ELSE="1")),
        gaudi(
            variables=lazy(**{CACHE: "/new/c,false,1024"}),
            paths={CACHE: folder("/new/c", exists=False)},
        ),
        gaudi(versions={"transformers": None, "diffusers": None}),
        gaudi(versions={"pytorch-lightning": "2.6.0"}),  # lightning's own dependency
        gaudi(
            versions={BRIDGE: "1.24.1.9", "torch": "2.11.0+hpu_1.24.1"}, driver={"version": None}
        ),
        gaudi(driver={"version": None, "hl_smi": None}),
    ):
        assert trouble(facts) == []
    levels = {f.check: f.level for f in check_all(gaudi(versions={"pytorch-lightning": "2.6.0"}))}
    assert levels["two_lightnings"] == "note"


def test_eager_mode_wanted():
    assert [f.check for f in trouble(gaudi(), "eager")] == ["mode"]
    eager = {"PT_HPU_LAZY_MODE": "0"}
    assert trouble(gaudi(variables=eager), "eager") == []
    assert trouble(gaudi(variables={}, loading=None), "eager") == []
    old = gaudi(
        variables={},
        versions={BRIDGE: "1.20.0.543", "torch": "2.6.0+hpu_1.20.0-543.git1"},
        driver={"version": None},
        loading=None,
    )
    assert trouble(old) == []
    assert [(f.check, f.level) for f in trouble(old, "eager")] == [("mode", "warning")]


def test_emulating_on_a_gaudi_machine_on_purpose():
    variables = lazy(LIGHTNING_GAUDI_EMULATOR="1", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    findings = check_all(gaudi(variables=variables))
    assert [(f.check, f.level) for f in findings if f.check == "emulator"] == [("emulator", "note")]


def test_a_machine_without_anything_is_told_about_the_emulator_only():
    findings = trouble(laptop(variables={}))
    assert [f.check for f in findings] == ["software"]
    assert "export LIGHTNING_GAUDI_EMULATOR=1" in findings[0].fix


@pytest.mark.parametrize(
    ("version", "torch"),
    [
        ("1.20.0.543", "2.6"),
        ("1.22.1.6", "2.7"),
        ("1.23.0.1", "2.9"),
        ("1.24.0.5", "2.10"),
        ("1.24.1.5", "2.11"),
        ("1.30.0.5", None),
    ],
)
def test_torch_of_a_release(version, torch):
    assert releases.torch_for(version) == torch


@pytest.mark.parametrize(
    ("version", "is_habanas"),
    [
        ("2.6.0+hpu_1.21.3-57.gitabf798b", True),
        ("2.4.0a0+git74cd574", True),
        ("2.6.0", False),
        ("2.6.0+cpu", False),
        ("2.6.0+cu124", False),
        ("2.8.0.dev20250601+rocm6.3", False),
    ],
)
def test_habanas_builds(version, is_habanas):
    assert releases.is_habanas(version) == is_habanas


def test_the_default_of_plan_is_that_of_the_data():
    from lightning_gaudi.cli.plan import DEFAULT_MAX_PADDING

    assert DEFAULT_MAX_PADDING == plan.DEFAULT_MAX_PADDING
