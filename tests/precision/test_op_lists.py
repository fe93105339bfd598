"""Autocast's op lists: they reach the bridge before it loads, or the user is told why not."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import RunPython

from lightning_gaudi import HPUPrecision
from lightning_gaudi.errors import ConfigurationError, ExecutionModeError
from lightning_gaudi.precision import DEFAULT_FP32_OPS, DEFAULT_LOWER_PRECISION_OPS
from lightning_gaudi.runtime import loading

LOWER = "PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST"
FP32 = "PT_HPU_AUTOCAST_FP32_OPS_LIST"


@pytest.fixture
def _not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the software has not been loaded; the variables are put back at the end."""
    monkeypatch.setattr(loading, "is_loaded", lambda: False)
    for variable in (LOWER, FP32):
        monkeypatch.setenv(variable, "")


def ops_in(variable: str) -> list[str]:
    return Path(os.environ[variable]).read_text().split()


STEP = """
    import sys
    import lightning as L, torch
    from lightning_gaudi import GaudiStrategy, HPUPrecision
    from lightning_gaudi.precision import DEFAULT_FP32_OPS, DEFAULT_LOWER_PRECISION_OPS
    from torch.utils.data import DataLoader

    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def training_step(self, batch):
            hidden = self.layer(batch)
            soft, tanh = hidden.softmax(-1), batch.tanh()
            self.tensors = {"linear": hidden, "softmax": soft, "tanh": tanh}
            self.found = [soft.detach().cpu(), hidden.detach().cpu()]
            return soft.float().square().sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    plugin = HPUPrecision("bf16-mixed", **eval(sys.argv[1]))
    torch.manual_seed(0)
    net = Net()
    run = L.Trainer(accelerator="hpu", strategy=GaudiStrategy(), plugins=[plugin], max_epochs=1,
                    logger=False, enable_checkpointing=False, enable_progress_bar=False)
    run.fit(net, DataLoader(torch.randn(2, 4), 2))
    print({name: str(t.dtype)[6:] for name, t in net.tensors.items()})
    soft, hidden = net.found
    assert torch.equal(soft, hidden.to(soft.dtype).softmax(-1))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "dtypes"),
    [
        (
            "{'fp32_ops': [*DEFAULT_FP32_OPS, 'softmax']}",
            ("bfloat16", "float32", "float32"),
        ),
        (
            "{'lower_precision_ops': ['tanh'], 'fp32_ops': ['softmax']}",
            ("float32", "float32", "bfloat16"),
        ),
    ],
    ids=["fp32", "both"],
)
def test_an_op_changes_its_dtype_in_the_step(
    settings: str, dtypes: tuple[str, ...], run_python: RunPython
) -> None:
    result = run_python(STEP, args=(settings,))
    expected = dict(zip(("linear", "softmax", "tanh"), dtypes, strict=True))
    assert result.stdout.strip().splitlines()[-1] == str(expected)


TWO_RANKS = """
    import os, sys, warnings
    warnings.simplefilter("ignore")
    import lightning as L, torch
    from lightning_gaudi import HPUPrecision
    from torch.utils.data import DataLoader

    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def predict_step(self, batch):
            hidden = self.layer(batch)
            return [str(hidden.dtype), str(hidden.softmax(-1).dtype), str(batch.tanh().dtype)]

    plugin = HPUPrecision("bf16-mixed", lower_precision_ops=["tanh", "linear"])
    run = L.Trainer(accelerator="hpu", devices=2, plugins=[plugin], logger=False,
                    enable_progress_bar=False)
    found = run.predict(Net(), DataLoader(torch.randn(2, 4), 1))
    with open(f"rank{run.global_rank}", "w") as file:
        print(found, os.environ["PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST"], sep="\\n", file=file)
"""


@pytest.mark.slow
def test_ranks_share_the_lists(run_python: RunPython, tmp_path: Path) -> None:
    run_python(TWO_RANKS, LIGHTNING_GAUDI_EMULATOR_DEVICES="2")
    ranks = [(tmp_path / f"rank{rank}").read_text().splitlines() for rank in range(2)]
    assert ranks[0][0] == str([["torch.bfloat16", "torch.bfloat16", "torch.bfloat16"]])
    assert ranks[0] == ranks[1]  # the file too
    assert not Path(ranks[0][1]).parent.exists()  # gone with the process that wrote it


@pytest.mark.usefixtures("_not_loaded")
def test_what_the_files_hold(tmp_path: Path) -> None:
    HPUPrecision("bf16-mixed", lower_precision_ops=["linear", " softmax", "linear"])
    assert ops_in(LOWER) == ["linear", "softmax"]
    assert os.environ[FP32] == ""
    # Another one may overrule what was set here, as long as nothing is loaded.
    listed = tmp_path / "ops.txt"
    listed.write_text("tanh\nexp\n")
    HPUPrecision("16-mixed", lower_precision_ops=listed, fp32_ops=("mean",))
    assert ops_in(LOWER) == ["tanh", "exp"]
    assert ops_in(FP32) == ["mean"]


@pytest.mark.usefixtures("_not_loaded")
def test_float32_ops_alone_leave_the_lower_list() -> None:
    HPUPrecision("bf16-mixed", fp32_ops=["softmax", "tanh"])
    assert set(ops_in(LOWER)) == set(DEFAULT_LOWER_PRECISION_OPS) - {"softmax"}
    assert ops_in(FP32) == ["softmax", "tanh"]


@pytest.mark.usefixtures("_not_loaded")
def test_float32_ops_that_are_not_lowered_leave_it_alone() -> None:
    HPUPrecision("bf16-mixed", fp32_ops=["tanh"])
    assert os.environ[LOWER] == ""


@pytest.mark.usefixtures("_not_loaded")
def test_names_from_optimum_habanas_models_are_known() -> None:
    """Its default lists, with names of Python operators."""
    lower = "add addmm bmm div dropout gelu iadd linear layer_norm matmul mm rsub softmax truediv"
    HPUPrecision(
        "bf16-mixed",
        lower_precision_ops=lower.split(),
        fp32_ops=["embedding", "nll_loss", "log_softmax"],
    )
    assert ops_in(LOWER) == lower.split()


def test_too_late() -> None:
    message = (
        "autocast's op lists must be set before the Gaudi software loads, which reads them once, "
        "but it is loaded, with other lists. Make the HPUPrecision (or the strategy) before "
        "anything uses the HPU. Where the software loads inside `import torch`, as it does in "
        "eager mode, write the names to files, one on each line, and before Python starts\n"
        f"    export {LOWER}=FILE\n    export {FP32}=FILE"
    )
    with pytest.raises(ExecutionModeError, match=f"^{re.escape(message)}$"):
        HPUPrecision("bf16-mixed", lower_precision_ops=["linear"], fp32_ops=["softmax"])


def test_the_same_lists_are_never_too_late(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lower").write_text("linear\n")
    monkeypatch.setenv(LOWER, str(tmp_path / "lower"))
    HPUPrecision("bf16-mixed", lower_precision_ops=["linear"])
    assert os.environ[LOWER] == str(tmp_path / "lower")


@pytest.mark.usefixtures("_not_loaded")
def test_another_list_is_exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "lower"
    path.write_text("linear\n")
    monkeypatch.setenv(LOWER, str(path))
    message = (
        f"autocast's op lists come from one place only, but {LOWER}={str(path)!r} is exported and "
        "holds other ops than those given in Python. Unset the variable, or leave out the list in "
        "Python."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        HPUPrecision("bf16-mixed", lower_precision_ops=["softmax"], fp32_ops=["linear"])
    assert os.environ[FP32] == ""  # none of the two was set
    path.unlink()
    with pytest.raises(ConfigurationError, match=rf"^{LOWER} must name a file .* cannot be read"):
        HPUPrecision("bf16-mixed", lower_precision_ops=["softmax"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lower_precision_ops": ["softmx", "linear"]},
         "lower_precision_ops must name ATen ops without their overload, such as 'linear' or "
         "'softmax', but there is no 'softmx' (did you mean 'softmax' or"),
        ({"fp32_ops": ["conv2"]}, "fp32_ops must name ATen ops without their overload, such as "
         "'linear' or 'softmax', but there is no 'conv2' (did you mean 'conv2d' or"),
        ({"fp32_ops": ["qqqq", "aten::exp"]}, "fp32_ops must name ATen ops without their overload, "
         "such as 'linear' or 'softmax', but there is no 'qqqq'; no 'aten::exp'"),
        ({"lower_precision_ops": ["tanh", "exp", "linear"], "fp32_ops": ["exp", "tanh"]},
         "an op runs in one dtype, but lower_precision_ops and fp32_ops both name 'exp', 'tanh'. "
         "Take it out of one of them."),
        ({"lower_precision_ops": []}, "lower_precision_ops must name at least one op, but it is "
         "empty. Leave it out for the default list."),
        ({"fp32_ops": "/no/such/file"}, "fp32_ops must be a list of names of ops, or the path of a "
         "file with one on each line, but '/no/such/file' cannot be read: "),
        ({"fp32_ops": [1]}, "fp32_ops must be names of ops, but it is [1]."),
        ({"precision": "32-true", "fp32_ops": ["exp"]}, "fp32_ops is for precision 'bf16-mixed' or "
         "'16-mixed' or 'fp8', but the precision is '32-true'. Leave it out."),
    ],
    ids=["near", "near number", "far", "both", "empty", "no file", "no name", "no autocast"],
)  # fmt: skip
@pytest.mark.usefixtures("_not_loaded")
def test_wrong_lists(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}"):
        HPUPrecision(**{"precision": "bf16-mixed"} | settings)


def test_the_defaults_are_what_the_device_does() -> None:
    from lightning_gaudi.emulator.autocast_lists import CastPolicy, load_policies

    policies = load_policies()
    lowered = {CastPolicy.LOWER, CastPolicy.LOWER_FIRST}
    assert {policies[name] for name in DEFAULT_LOWER_PRECISION_OPS} == lowered
    assert {policies[name] for name in DEFAULT_FP32_OPS} == {CastPolicy.FP32}
