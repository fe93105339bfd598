"""Which process and which card the environment names, and what HCCL cannot reduce with."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from habana_frameworks.torch.distributed.hccl import initialize_distributed_hpu
from torch import nn

from lightning_gaudi.emulator import hccl

OURS = (
    *hccl._FROM_MPI,
    *hccl._FROM_MPI.values(),
    "HLS_MODULE_ID",
    "HABANA_VISIBLE_MODULES",
    "ID",
    "MASTER_ADDR",
    "MASTER_PORT",
)


@pytest.fixture
def variables() -> Iterator[dict[str, str]]:
    """The variables that count, all unset; put back afterwards. Call to see what is set."""
    before = {name: os.environ.pop(name) for name in OURS if name in os.environ}
    yield os.environ
    for name in OURS:
        os.environ.pop(name, None)
    os.environ.update(before)


def found() -> dict[str, str]:
    return {name: os.environ[name] for name in OURS if name in os.environ}


def test_without_a_launcher(variables):
    assert initialize_distributed_hpu() == (1, -1, -1)
    assert found() == {"MASTER_ADDR": "localhost", "MASTER_PORT": "12345"}


def test_what_is_given_becomes_the_environment(variables):
    assert initialize_distributed_hpu(world_size=4, rank=3, local_rank=1) == (4, 3, 1)
    assert found() == {
        "WORLD_SIZE": "4",
        "RANK": "3",
        "LOCAL_RANK": "1",
        "HLS_MODULE_ID": "1",
        "ID": "3",
    }


def test_a_part_of_it_is_not_enough(variables):
    variables.update(WORLD_SIZE="2", RANK="1", LOCAL_RANK="1")
    assert initialize_distributed_hpu(world_size=8) == (2, 1, 1)


def test_torchrun(variables):
    variables.update(WORLD_SIZE="2", RANK="1", LOCAL_RANK="1", OMPI_COMM_WORLD_RANK="7")
    assert initialize_distributed_hpu() == (2, 1, 1)
    assert found()["HLS_MODULE_ID"] == "1"
    assert "MASTER_PORT" not in found()


def test_mpi(variables):
    variables.update(
        OMPI_COMM_WORLD_SIZE="16",
        OMPI_COMM_WORLD_RANK="9",
        OMPI_COMM_WORLD_LOCAL_RANK="1",
        MASTER_PORT="4000",
    )
    assert initialize_distributed_hpu() == (16, 9, 1)
    assert {"RANK": "9", "MASTER_ADDR": "localhost", "MASTER_PORT": "4000"}.items() <= (
        found().items()
    )


def test_a_module_id_that_is_set_stays(variables):
    variables.update(HLS_MODULE_ID="6")
    initialize_distributed_hpu(8, 2, 2)
    assert found()["HLS_MODULE_ID"] == "6"


def test_one_process_takes_any_card(variables):
    initialize_distributed_hpu(1, 0, 0)
    assert "HLS_MODULE_ID" not in found()


def test_visible_modules_are_taken_in_their_order(variables):
    variables.update(HABANA_VISIBLE_MODULES="4,6")
    initialize_distributed_hpu(2, 1, 1)
    assert found()["HLS_MODULE_ID"] == "6"
    del os.environ["HLS_MODULE_ID"]
    with pytest.raises(AssertionError, match=r"not enough devices: local rank 2 .*MODULES=4,6"):
        initialize_distributed_hpu(3, 2, 2)


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("hccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_what_hccl_reduces_with(group):
    for op in (dist.ReduceOp.SUM, dist.ReduceOp.PRODUCT, dist.ReduceOp.MIN, dist.ReduceOp.MAX):
        tensor = torch.arange(3.0, device="hpu")
        dist.all_reduce(tensor, op=op)
        assert tensor.tolist() == [0.0, 1.0, 2.0]
    dist.all_reduce(tensor)
    assert tensor.tolist() == [0.0, 1.0, 2.0]


def test_what_hccl_does_not_reduce_with(group):
    tensor = torch.ones(2, device="hpu")
    with pytest.raises(RuntimeError, match=r"hccl has no ReduceOp\.AVG: .* divide by the number"):
        dist.all_reduce(tensor, dist.ReduceOp.AVG)
    with pytest.raises(RuntimeError, match=r"hccl has no ReduceOp\.AVG"):
        dist.reduce(tensor, 0, op=dist.ReduceOp(dist.ReduceOp.AVG), group=dist.group.WORLD)
    with pytest.raises(RuntimeError, match=r"hccl has no ReduceOp\.BAND"):
        dist.reduce_scatter(tensor, [tensor], op=dist.ReduceOp.BAND)


def test_tensors_on_the_host_are_refused(group):
    host, device = torch.ones(1), torch.zeros(1, device="hpu")
    message = r'No backend type associated with device type cpu: .* Move the tensor with \.to\("hpu'
    with pytest.raises(RuntimeError, match=message):
        dist.all_reduce(host)
    with pytest.raises(RuntimeError, match=message):
        dist.all_gather([device], tensor=host, group=dist.group.WORLD)
    with pytest.raises(RuntimeError, match=message):
        dist.all_gather([host], device)
    with pytest.raises(RuntimeError, match=message):
        dist.broadcast(nn.Parameter(host), 0)
    gathered: list[object] = [None]
    dist.all_gather_object(gathered, {"of": "any kind"})
    assert gathered == [{"of": "any kind"}]
    dist.broadcast_object_list(gathered, 0, device=torch.device("hpu"))
    gloo = dist.new_group(backend="gloo")
    dist.all_reduce(host, group=gloo)
    assert host.tolist() == [1.0]


def test_other_backends_reduce_as_they_do(group):
    gloo = dist.new_group(backend="gloo")
    tensor = torch.tensor([6])
    dist.all_reduce(tensor, op=dist.ReduceOp.BAND, group=gloo)
    assert tensor.tolist() == [6]


def test_registering_again_does_nothing():
    reduce = dist.all_reduce
    hccl.register()
    assert dist.all_reduce is reduce


def test_two_processes_on_one_card_are_refused(variables):
    """CARD.md 10: an inherited ``HLS_MODULE_ID`` would give every rank the same card."""
    store = dist.HashStore()
    store.set("card/1", f"{socket.gethostname()}:5")
    variables["HLS_MODULE_ID"] = "5"
    with pytest.raises(RuntimeError, match=r"ranks 0 and 1 have the same card: HLS_MODULE_ID=5 in"):
        hccl._check_cards(store, 0, 2)
    variables["HLS_MODULE_ID"] = "4"
    hccl._check_cards(store, 0, 2)
    store.set("card/1", "another machine:4")
    hccl._check_cards(store, 0, 2)
    del variables["HLS_MODULE_ID"]
    hccl._check_cards(store, 0, 2)


@pytest.mark.slow
def test_a_group_of_two_says_so_in_both(run_python):
    code = """
        import os, sys
        import torch.distributed as dist
        import habana_frameworks.torch.distributed.hccl
        from torch import multiprocessing

        def work(rank, port):
            store = dist.TCPStore("localhost", port, 2)
            try:
                dist.init_process_group("hccl", store=store, rank=rank, world_size=2)
                dist.barrier()
            except RuntimeError as error:
                print(error, flush=True)

        if __name__ == "__main__":
            store = dist.TCPStore("localhost", 0, 2, is_master=True, wait_for_workers=False)
            multiprocessing.spawn(work, (store.port,), nprocs=2)
    """
    output = run_python(code, HLS_MODULE_ID="0").stdout  # lines of two processes may run together
    assert output.count("ranks 0 and 1 have the same card") == 2, output
