"""Every module of PyTorch's table of modules: forward and backward give what the CPU gives."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from emulator.opinfo.comparison import compare
from emulator.opinfo.inputs import copies, tensors_in
from torch import nn
from torch.testing._internal.common_modules import module_db

# They have a fused path on the CPU that no card takes, or accumulate otherwise on a device.
OTHER_ROUNDING = frozenset(
    {
        "nn.LinearCrossEntropyLoss",
        "nn.MultiheadAttention",
        "nn.TransformerEncoder",
        "nn.TransformerEncoderLayer",
        "nn.Transformer",
        "nn.TransformerDecoderLayer",
    }
)


def _run(module: nn.Module, given: Any, device: str) -> tuple[Any, Any]:
    """Outputs and the gradients of parameters and inputs, with the numbers of a fixed seed."""
    args = copies(list(given.args), device)
    kwargs = copies(dict(given.kwargs), device)
    torch.manual_seed(3)
    outputs = module(*args, **kwargs)
    wanted = [t for t in tensors_in(outputs) if t.requires_grad]
    leaves = [t for t in tensors_in([args, kwargs]) if t.requires_grad]
    leaves += [p for p in module.parameters() if p.requires_grad]
    if not wanted or not leaves:
        return outputs, ()
    numbers = torch.Generator().manual_seed(3)
    seeds = [torch.randn(t.shape, dtype=t.dtype, generator=numbers).to(device) for t in wanted]
    return outputs, torch.autograd.grad(wanted, leaves, seeds, allow_unused=True)


@pytest.mark.opinfo
@pytest.mark.parametrize("info", module_db, ids=lambda info: info.name)
@pytest.mark.parametrize("is_training", [False, True], ids=["eval", "train"])
def test_a_module_equals_the_cpus(info, is_training):
    tolerance = (1.3e-6, 1e-5) if info.name in OTHER_ROUNDING else (0.0, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        for number, sample in enumerate(
            info.module_inputs_func(
                info, device="cpu", dtype=torch.float32, requires_grad=True, training=is_training
            )
        ):
            given = sample.constructor_input
            host = info.module_cls(*given.args, **given.kwargs).train(is_training)
            if sample.forward_input is None:
                continue
            device = copy.deepcopy(host).to("hpu")
            try:
                expected = _run(host, sample.forward_input, "cpu")
            except Exception as error:
                with pytest.raises(type(error)):
                    _run(device, sample.forward_input, "hpu")
                continue
            found = _run(device, sample.forward_input, "hpu")
            compare(expected, found, f"sample {number}", tolerance=tolerance)
            for name, buffer in host.named_buffers():
                compare(buffer, device.get_buffer(name), f"sample {number}, {name}")
