"""DTensors and storages that are resized, on the emulated HPU; one process is a mesh of one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from lightning_gaudi import emulator
from lightning_gaudi.emulator import accounting, hccl
from lightning_gaudi.emulator.tensor import HPUTensor

NBYTES = 16 * 4


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    hccl.register()
    dist.init_process_group("hccl", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("hpu", (1,))
    dist.destroy_process_group()


def test_dtensor_answers_for_its_local_tensor(mesh: DeviceMesh) -> None:
    value = torch.arange(6.0).reshape(3, 2)
    tensor = distribute_tensor(value.to("hpu"), mesh, [Shard(0)])
    assert type(tensor.to_local()) is HPUTensor
    assert tensor.device == torch.device("hpu", 0)
    assert tensor.is_hpu
    assert not tensor.is_cpu
    assert tensor.to("hpu") is tensor
    assert tensor.to(tensor.device) is tensor
    half = tensor.to(torch.bfloat16)
    assert (half.device.type, half.dtype) == ("hpu", torch.bfloat16)
    assert type(tensor.full_tensor()) is HPUTensor
    with pytest.raises(RuntimeError, match="hpu:1 does not exist"):
        tensor.to("hpu:1")


def test_dtensor_moves_to_the_host(mesh: DeviceMesh) -> None:
    value = torch.arange(6.0).reshape(3, 2)
    tensor = distribute_tensor(value.to("hpu"), mesh, [Shard(0)])
    for moved in (tensor.cpu(), tensor.to("cpu"), tensor.to(device="cpu", dtype=torch.float64)):
        assert type(moved.to_local()) is torch.Tensor
        assert moved.device == torch.device("cpu")
        assert moved.is_cpu
        assert not moved.is_hpu
        assert moved.shape == tensor.shape
        assert moved.placements == tensor.placements
        assert moved.dtype == moved.to_local().dtype
        assert torch.equal(moved.to_local().float(), value)
    tensor.to_local().zero_()
    assert torch.equal(moved.to_local().float(), value)


def test_dtensor_of_the_host_stays_there(mesh: DeviceMesh) -> None:
    moved = distribute_tensor(torch.ones(2, device="hpu"), mesh, [Shard(0)]).cpu()
    assert moved.to("cpu") is moved
    back = moved.to("hpu")
    assert back.device == torch.device("hpu", 0)
    assert type(back.to_local()) is HPUTensor


def test_optimizers_and_clipping_take_no_foreach_kernels(mesh: DeviceMesh) -> None:
    weight = nn.Parameter(distribute_tensor(torch.ones(4, 2, device="hpu"), mesh, [Shard(0)]))
    optimizer = torch.optim.AdamW([weight], 0.1)
    with emulator.record() as events:
        for _ in range(4):
            weight.grad = torch.ones_like(weight)
            nn.utils.clip_grad_norm_([weight], 0.1)
            optimizer.step()
            accounting.flush("test")
    kinds = [event.kind for event in events]
    # A constant of the step, the correction of the moments, would make each a graph of its own;
    # the first step also makes the moments.
    assert kinds.count("compile") < kinds.count("flush") == 4
    assert not {"d2h", "host_read"} & set(kinds)
    with pytest.raises(RuntimeError, match="foreach=True was passed, but can't use the foreach"):
        nn.utils.clip_grad_norm_([weight], 0.1, foreach=True)


def test_dtensor_with_a_plain_tensor_is_refused_in_pytorchs_words(mesh: DeviceMesh) -> None:
    tensor = distribute_tensor(torch.ones(2, 2, device="hpu"), mesh, [Shard(0)])
    plain = torch.ones(2, 2, device="hpu")
    for left, right in ((plain, tensor), (tensor, plain)):
        with pytest.raises(RuntimeError, match=r"got mixed torch\.Tensor and DTensor, need to"):
            left @ right


def test_memory_of_a_resized_storage() -> None:
    tensor = torch.zeros(16, device="hpu")
    before = torch.hpu.memory_allocated()
    storage = tensor.untyped_storage()
    storage.resize_(0)
    assert torch.hpu.memory_allocated() == before - NBYTES
    torch.hpu.reset_peak_memory_stats()
    storage.resize_(NBYTES)
    assert torch.hpu.memory_allocated() == torch.hpu.max_memory_allocated() == before
    del tensor, storage
    assert torch.hpu.memory_allocated() == before - NBYTES


def test_resizing_the_hosts_storage_is_no_device_memory() -> None:
    tensor = torch.zeros(16)
    before = torch.hpu.memory_allocated()
    assert tensor.untyped_storage().resize_(4 * NBYTES).nbytes() == 4 * NBYTES
    assert torch.hpu.memory_allocated() == before
