"""What an op must not do on its way through `dispatch`, and what only collectives pass it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils import _pytree


def test_no_op_walks_a_tree_of_its_arguments(monkeypatch):
    """PyTorch's walk over nested arguments costs more than most ops."""

    def refuse(*args, **kwargs):
        raise AssertionError("an op walked its arguments with pytree")

    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).to("hpu")
    optimizer = torch.optim.AdamW(layer.parameters())
    for name in ("tree_map", "tree_map_only", "tree_flatten", "tree_unflatten", "tree_leaves"):
        monkeypatch.setattr(_pytree, name, refuse)
    x = torch.randn(2, 3, 8, device="hpu")
    out = torch.cat(layer(x).split(4, dim=-1))
    out[[0, 1]].sum().backward()
    optimizer.step()
    values, indices = torch.sort(out.detach())
    assert (values.device.type, indices.device.type) == ("hpu", "hpu")
    with pytest.raises(AssertionError, match="with pytree"):
        _pytree.tree_map(lambda t: t, [x])


@pytest.mark.slow
def test_collectives_pass_lists_of_lists(run_python):
    """c10d nests tensors two lists deep; values come back on the device, and both flush."""
    result = run_python(
        """
        import os
        import torch
        import torch.distributed as dist
        from lightning_gaudi import emulator
        from lightning_gaudi.runtime import distributed, loading

        loading.load("lazy")
        distributed.load_backend()
        store = f"file://{os.getcwd()}/store"
        dist.init_process_group("hccl", init_method=store, rank=0, world_size=1)
        x = torch.arange(3.0, device="hpu") * 2
        gathered = [torch.zeros_like(x)]
        with emulator.record() as events:
            dist.all_gather(gathered, x)
            scattered = torch.zeros_like(x)
            dist.scatter(scattered, [x + 1])
            collected = [torch.zeros_like(x)]
            dist.gather(x, collected)
        print([(t.device.type, t.tolist()) for t in (*gathered, scattered, *collected)])
        print([e.cause for e in events if e.kind == "flush"][:2])
        with emulator.record() as events:
            try:
                dist.all_gather([torch.zeros(3)], x)
            except RuntimeError as error:
                print(str(error)[:60])
        dist.destroy_process_group()
        """
    )
    values, flushes, *refused = result.stdout.splitlines()
    assert values == (
        "[('hpu', [0.0, 2.0, 4.0]), ('hpu', [1.0, 3.0, 5.0]), ('hpu', [0.0, 2.0, 4.0])]"
    )
    assert flushes == "['collective', 'collective']"
    assert refused == ["No backend type associated with device type cpu: hccl is the"]
