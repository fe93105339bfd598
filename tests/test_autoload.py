"""The emulated HPU under scripts that know nothing of this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lightning_gaudi_autoload

SOFTWARE_FIRST = """
    import habana_frameworks.torch as ht
    import habana_frameworks.torch.core as htcore
    import torch
"""
TORCH_FIRST = """
    import torch
"""
USE = """
    import sys
    x = torch.arange(3.0, device=torch.device("hpu"), requires_grad=True)
    (x * x).sum().backward()
    print(x.device, x.grad.tolist(), torch.hpu.is_available())
    print("lightning" in sys.modules)
"""


@pytest.mark.parametrize("first", [SOFTWARE_FIRST, TORCH_FIRST], ids=["software", "torch"])
@pytest.mark.parametrize("autoload", ["1", "0"])
def test_a_script_that_knows_only_the_software_or_the_device(run_python, first, autoload):
    if first is TORCH_FIRST and autoload == "0":
        code = first + "    import habana_frameworks.torch\n" + USE
    else:
        code = first + USE
    output = run_python(code, TORCH_DEVICE_BACKEND_AUTOLOAD=autoload).stdout
    assert output == "hpu:0 [0.0, 2.0, 4.0] True\nFalse\n"


@pytest.mark.parametrize("value", [None, "0", ""])
def test_silent_and_harmless_without_the_variable(run_python, value):
    code = """
        import sys
        finders = len(sys.meta_path)
        import torch
        assert not [name for name in sys.modules if name.startswith("lightning_gaudi.")]
        assert not hasattr(torch, "hpu") or not torch.hpu.is_available()
        assert not any(type(f).__module__ == "lightning_gaudi_autoload" for f in sys.meta_path)
        try:
            import habana_frameworks
        except ModuleNotFoundError as error:
            print(error)
    """
    result = run_python(code, LIGHTNING_GAUDI_EMULATOR=value)
    assert result.stdout == "No module named 'habana_frameworks'\n"
    assert result.stderr == ""


def test_the_package_itself_comes_after_it_whole(run_python):
    code = """
        import torch
        import lightning_gaudi, lightning_gaudi.emulator, sys
        from lightning_gaudi.emulator import accounting
        assert lightning_gaudi.emulator is sys.modules["lightning_gaudi.emulator"]
        assert lightning_gaudi.emulator.is_installed()
        import lightning as L
        print(L.Trainer(accelerator="hpu", devices=1, logger=False).strategy.root_device)
    """
    result = run_python(code)
    assert "hpu:0\n" in result.stdout


def test_a_wrong_value_says_so(run_python):
    result = run_python("import torch", check=False, LIGHTNING_GAUDI_EMULATOR="yes")
    assert result.returncode != 0
    assert "LIGHTNING_GAUDI_EMULATOR must be 1 (emulate the HPU) or 0" in result.stderr
    assert "it is 'yes'" in result.stderr


def test_worker_processes_have_the_device(run_python):
    code = """
        import torch, multiprocessing

        def work(queue):
            queue.put(str(torch.ones(1, device="hpu").device))

        if __name__ == "__main__":
            context = multiprocessing.get_context("spawn")
            queue = context.Queue()
            process = context.Process(target=work, args=(queue,))
            process.start()
            print(queue.get(timeout=60))
            process.join()
    """
    assert run_python(code).stdout == "hpu:0\n"


def test_the_entry_point_and_the_startup_file_are_installed():
    from importlib.metadata import entry_points

    ours = [e for e in entry_points(group="torch.backends") if e.module.startswith("lightning_g")]
    assert [entry.load() for entry in ours] == [lightning_gaudi_autoload.load]
    result = subprocess.run(
        [sys.executable, "-c", "import sys; print('lightning_gaudi_autoload' in sys.modules)"],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout == "True\n"
    source = Path(lightning_gaudi_autoload.__file__).parent / "lightning_gaudi_autoload.pth"
    assert len(source.read_text().splitlines()) == 1  # Python runs each line on its own


def test_loading_again_changes_nothing():
    before = torch.Tensor.to
    lightning_gaudi_autoload.load()
    assert torch.Tensor.to is before
