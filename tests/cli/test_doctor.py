"""``lightning-gaudi doctor`` for real: other versions and variables in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
COMMAND = [sys.executable, "-W", "ignore", "-m", "lightning_gaudi_autoload.command", "doctor"]


def doctor(
    folder: Path, *arguments: str, is_json: bool = True, **variables: str | None
) -> tuple[int, dict]:
    """Run it with a folder in front of ``sys.path``; its code and its JSON."""
    ours = {"LIGHTNING_GAUDI_EMULATOR": None, "PT_HPU_LAZY_MODE": None}
    path = os.pathsep.join([str(folder), str(ROOT)])
    merged = dict(os.environ) | ours | {"PYTHONPATH": path} | variables
    result = subprocess.run(
        [*COMMAND, "--json", *arguments],
        env={name: value for name, value in merged.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stderr == ""
    return result.returncode, json.loads(result.stdout)


def install(folder: Path, name: str, version: str) -> None:
    """Pretend that a distribution is installed."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def add_software(folder: Path, code: str = "", version: str = "1.21.0.555") -> None:
    """Pretend that the Gaudi software is installed, with Habana's torch, and driver and cards."""
    install(folder, "habana-torch-plugin", version)
    package = folder / "habana_frameworks" / "torch"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text(code)
    (package / "core.py").write_text("")
    (package / "hpu.py").write_text("def device_count():\n    return 8\n")
    (package / "utils").mkdir()
    (package / "utils" / "__init__.py").write_text("")
    (package / "utils" / "internal.py").write_text("def is_lazy():\n    return False\n")


def command_lines() -> list[str]:
    """Those of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text())
    return found


def levels(document: dict) -> dict[str, str]:
    return {f["check"]: f["level"] for f in document["findings"] if f["level"] != "ok"}


def test_here_without_the_emulator_there_is_no_hpu(tmp_path):
    code, document = doctor(tmp_path)
    assert code == 1
    assert levels(document)["software"] == "fault"
    assert document["facts"]["loading"] is None
    assert document["facts"]["installed"]["torch_file"].endswith("torch")


@pytest.mark.slow
def test_here_with_the_emulator_all_is_well(tmp_path):
    code, document = doctor(tmp_path, LIGHTNING_GAUDI_EMULATOR="1", PT_HPU_LAZY_MODE="1")
    assert (code, document["is_usable"]) == (0, True)
    assert document["facts"]["loading"]["is_lazy"] is True
    assert document["facts"]["loading"]["num_cards"] == 1


@pytest.mark.slow
def test_planted_packages_and_variables(tmp_path):
    add_software(tmp_path)
    for name, version in {
        "lightning": "2.4.0",
        "pytorch-lightning": "2.3.0",
        "lightning-habana": "1.6.0",
        "optimum-habana": "1.15.0",
        "transformers": "4.45.2",
    }.items():
        install(tmp_path, name, version)
    (tmp_path / "a_file").write_text("")
    code, document = doctor(
        tmp_path,
        HABANA_VISIBLE_MODULES="0,1",
        HLS_MODULE_ID="0",
        PT_HPU_RECIPE_CACHE_CONFIG=f"{tmp_path / 'a_file'},false,1024",
        PT_HPU_AUTOCAST_FP32_OPS_LIST=str(tmp_path / "missing.txt"),
        PT_HPU_PLACE_ON_CPU="add",
        PT_HPU_LAZY_MODE="0",
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
        LIGHTNING_GAUDI_EMULATOR="1",
    )
    assert code == 1
    assert levels(document) == {
        "driver": "fault",
        "cards": "fault",
        "torch_build": "fault",
        "torch_release": "fault",
        "lightning": "fault",
        "two_lightnings": "warning",
        "lightning_habana": "fault",
        "optimum_habana": "warning",
        "transformers": "warning",
        "emulator": "note",
        "mode": "fault",
        "autoload": "warning",
        "visible_modules": "fault",
        "module_id": "warning",
        "recipe_cache": "fault",
        "place_on_cpu": "warning",
        "autocast_lists": "fault",
    }


def test_the_mode_that_the_software_came_up_in(tmp_path):
    add_software(tmp_path)
    code, document = doctor(tmp_path)
    found = {f["check"]: f for f in document["findings"]}
    assert code == 1  # for torch is not Habana's
    assert "loads in eager mode" in found["mode"]["found"]
    assert document["facts"]["loading"]["num_cards"] == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            # A process of its own keeps the pipe open, as a daemon may.
            "import subprocess, time\nsubprocess.Popen(['sleep', '61.7'])\ntime.sleep(60)",
            "not loaded within 4 s",
        ),
        ("import os\nos.abort()", "the process ended with signal 6"),
        ("raise ImportError('libSynapse.so: no such file')", "ImportError: libSynapse.so: no such"),
    ],
    ids=["hangs", "aborts", "raises"],
)
def test_software_that_does_not_load(tmp_path, code, message):
    add_software(tmp_path, code)
    _, document = doctor(tmp_path, "--limit", "4" if "sleep" in code else "100")
    found = {f["check"]: f for f in document["findings"]}["loading"]
    assert found["level"] == "fault"
    assert message in found["found"]
    assert not [line for line in command_lines() if line.endswith("sleep\x0061.7\x00")]


def test_nothing_heavy_is_imported(tmp_path):
    """Neither torch, which may load the software and hang, nor Lightning; nor for help."""
    add_software(tmp_path, "raise AssertionError('loaded in the process of doctor')")
    code = """
import contextlib, io, sys
sys.argv = ["lightning-gaudi", *sys.argv[1:]]
from lightning_gaudi_autoload.command import main
with contextlib.redirect_stdout(io.StringIO()):
    try:
        main()
    except SystemExit:
        pass
heavy = {"torch", "lightning", "numpy", "habana_frameworks", "transformers"}
print(sorted(heavy & set(sys.modules)), "lightning_gaudi.cli.main" in sys.modules)
"""
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    for arguments in (["doctor", "--no-load"], ["--help"], ["completion", "bash"]):
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=dict(os.environ) | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.stdout == "[] True\n", (arguments, result)


def test_text_for_people(tmp_path):
    result = subprocess.run(
        [*COMMAND, "--no-load"],
        env=dict(os.environ) | {"LIGHTNING_GAUDI_EMULATOR": "1", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "ok    emulated HPU    asked for\n" in result.stdout.replace(" " * 60, "").replace(
        "  \n", "\n"
    )
    assert result.stdout.endswith("\nThe HPU is usable: 0 faults, 0 warnings.\n")


def test_a_bad_limit():
    result = subprocess.run([*COMMAND, "--limit", "0"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "argument --limit: must be above 0, but it is 0\n" in result.stderr
