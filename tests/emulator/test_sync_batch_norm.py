"""``nn.SyncBatchNorm``: batches of several processes are normalized as one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

EPS = 1e-5


@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 5), (7, 3, 2, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_steps_against_one_batch_norm(shape, dtype):
    torch.manual_seed(0)
    host = (torch.randn(shape) * 2 + 1).to(dtype)
    grad = torch.randn(shape).to(dtype)
    norm = nn.BatchNorm1d(3) if host.dim() < 4 else nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    weight, bias = norm.weight.detach().to("hpu"), norm.bias.detach().to("hpu")
    running = [torch.zeros(3, device="hpu"), torch.ones(3, device="hpu")]
    leaf = host.float().requires_grad_()
    expected = norm(leaf)
    expected.backward(grad.float())

    parts, grads = host.to("hpu").split([4, 3]), grad.to("hpu").split([4, 3])
    counts = torch.tensor([p.numel() / 3 for p in parts], device="hpu")
    means, inverses = zip(*[torch.batch_norm_stats(p, EPS) for p in parts], strict=True)
    mean, inverse = torch.batch_norm_gather_stats_with_counts(
        parts[0], torch.stack(means), torch.stack(inverses), *running, 0.1, EPS, counts
    )
    out = [torch.batch_norm_elemt(p, weight, bias, mean, inverse, EPS) for p in parts]
    sums = [
        torch.batch_norm_backward_reduce(g, p, mean, inverse, weight, True, True, True)
        for g, p in zip(grads, parts, strict=True)
    ]
    sum_dy, sum_dy_xmu, grad_weight, grad_bias = map(sum, zip(*sums, strict=True))
    grad_input = [
        torch.batch_norm_backward_elemt(
            g, p, mean, inverse, weight, sum_dy, sum_dy_xmu, counts.int()
        )
        for g, p in zip(grads, parts, strict=True)
    ]
    exact = {"rtol": 1e-4, "atol": 1e-5}
    rounded = exact if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    for found, reference, tolerance in (
        (torch.cat(out), expected, rounded),
        (torch.cat(grad_input), leaf.grad, rounded),
        (grad_weight, norm.weight.grad, exact),
        (grad_bias, norm.bias.grad, exact),
        (running[0], norm.running_mean, exact),
        (running[1], norm.running_var, exact),
    ):
        assert found.device.type == "hpu"
        torch.testing.assert_close(found.cpu().float(), reference.detach(), **tolerance)
    assert {o.dtype for o in (*out, *grad_input)} == {dtype}


def test_what_is_not_wanted_is_none():
    tensor, ones = torch.randn(4, 3, device="hpu"), torch.ones(3, device="hpu")
    sums = torch.batch_norm_backward_reduce(tensor, tensor, ones, ones, None, False, True, False)
    assert [s is None for s in sums] == [True, True, False, True]
    plain = torch.batch_norm_elemt(tensor, None, None, ones, ones, EPS)
    assert torch.equal(plain.cpu(), tensor.cpu() - 1)


def test_the_host_has_none():
    with pytest.raises(NotImplementedError, match="batch_norm_stats"):
        torch.batch_norm_stats(torch.ones(2, 3), EPS)


@pytest.mark.slow
def test_two_processes_against_one_batch_norm(run_python):
    code = """
        import copy, os
        import torch
        import torch.distributed as dist
        import habana_frameworks.torch.distributed.hccl
        from torch import multiprocessing, nn

        def work(rank, port):
            os.environ["HLS_MODULE_ID"] = str(rank)
            store = dist.TCPStore("localhost", port, 2)
            dist.init_process_group("hccl", store=store, rank=rank, world_size=2)
            torch.manual_seed(0)
            reference = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten())
            module = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(reference)).to("hpu")
            module = nn.parallel.DistributedDataParallel(module)
            x = torch.randn(6, 1, 3, 3)
            module(x[rank * 3 : rank * 3 + 3].to("hpu")).square().mean().backward()
            reference(x).square().mean().backward()
            for found, expected in zip(module.parameters(), reference.parameters()):
                torch.testing.assert_close(found.grad.cpu(), expected.grad, atol=1e-5, rtol=1e-4)
            found, expected = module.module[1].running_var, reference[1].running_var
            torch.testing.assert_close(found.cpu(), expected)
            # What all have, in a buffer of any shape.
            gathered = torch.zeros(1, 4, device="hpu")
            dist.all_gather_into_tensor(gathered, torch.full((1, 2), rank + 1.0, device="hpu"))
            assert gathered.tolist() == [[1.0, 1.0, 2.0, 2.0]]
            dist.destroy_process_group()

        if __name__ == "__main__":
            store = dist.TCPStore("localhost", 0, 2, is_master=True, wait_for_workers=False)
            multiprocessing.spawn(work, (store.port,), nprocs=2)
            print("equal")
    """
    variables = {"LIGHTNING_GAUDI_EMULATOR_DEVICES": "2", "OMP_NUM_THREADS": "1"}
    output = run_python(code, HLS_MODULE_ID=None, **variables).stdout
    assert output == "equal\n"
