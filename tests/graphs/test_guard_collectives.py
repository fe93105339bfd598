"""Collectives and captures: the module inside the distributed wrapper is what is captured."""

from __future__ import annotations

import re


def test_card_rule_14_no_collective_in_a_capture(run_python):
    result = run_python(
        """
        import sys
        import torch, torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel
        from lightning_gaudi.graphs import GraphedForward
        from lightning_gaudi.errors import HostReadError
        from lightning_gaudi.runtime import loading
        loading.load("lazy")
        import habana_frameworks.torch.distributed.hccl
        dist.init_process_group("hccl", store=dist.HashStore(), rank=0, world_size=1)

        def forward(x):
            y = x * 2
            dist.all_reduce(y)
            return y

        x = torch.arange(3.0).to("hpu")
        with torch.no_grad():
            try:
                GraphedForward(forward)(x)
            except HostReadError as error:
                print("refused", error)
            module = torch.nn.Linear(3, 3).to("hpu")
            wrapper = DistributedDataParallel(module)
            graphed = GraphedForward(wrapper.module)
            print("inner", all(torch.equal(graphed(x).cpu(), module(x).cpu()) for _ in "ab"))
            print(graphed.stats.replays)
        dist.destroy_process_group()
        """
    )
    assert "refused cannot capture forward as an HPU graph: c10d::allreduce_ is a coll" in (
        result.stdout
    )
    assert re.search(r"at .*script\.py:\d+\. .* PT_HPU_ENABLE_LAZY_COLLECTIVES=1", result.stdout)
    assert "inner True\n1\n" in result.stdout
