"""Moves between host and device: values, types, gradients, ties."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gaudi import emulator

HOST = torch.arange(6.0).reshape(2, 3)


def test_there_and_back_keeps_values_and_shares_nothing():
    host = HOST.clone()
    device = host.to("hpu")
    host.fill_(9)
    back = device.cpu()
    assert type(back) is torch.Tensor
    assert torch.equal(back, HOST)
    back.fill_(7)
    assert torch.equal(device.cpu(), HOST)


@pytest.mark.parametrize(
    ("move", "dtype"),
    [
        (lambda t: t.to("hpu"), torch.float32),
        (lambda t: t.to(device="hpu"), torch.float32),
        (lambda t: t.to(torch.device("hpu"), non_blocking=True), torch.float32),
        (lambda t: t.to("hpu", torch.float16), torch.float16),
        (lambda t: t.to("hpu", dtype=torch.int64), torch.int64),
        (lambda t: t.to("hpu", None, True), torch.float32),
        (lambda t: t.to(torch.ones(1, dtype=torch.float64, device="hpu")), torch.float64),
        (lambda t: t.to(other=torch.ones(1, device="hpu")), torch.float32),
        (lambda t: t.to(0), torch.float32),
        (lambda t: t.hpu(), torch.float32),
        (lambda t: torch.as_tensor(t, device="hpu"), torch.float32),
        (lambda t: torch.empty_like(t, device="hpu").copy_(t), torch.float32),
    ],
)
def test_every_spelling_of_a_move_to_the_device(move, dtype):
    moved = move(HOST)
    assert moved.device.type == "hpu"
    assert moved.dtype == dtype
    assert torch.equal(moved.cpu(), HOST.to(dtype))


@pytest.mark.parametrize(
    ("move", "dtype"),
    [
        (lambda t: t.cpu(), torch.float32),
        (lambda t: t.to("cpu"), torch.float32),
        (lambda t: t.to("cpu", torch.float64), torch.float64),
        (lambda t: t.to(device="cpu", dtype=torch.int64, copy=True), torch.int64),
        (lambda t: t.to(torch.ones(1, dtype=torch.float16)), torch.float16),
        (lambda t: torch.as_tensor(t, device="cpu"), torch.float32),
        (lambda t: torch.asarray(t, device="cpu"), torch.float32),
        (lambda t: torch.empty(2, 3).copy_(t), torch.float32),
    ],
)
def test_every_spelling_of_a_move_to_the_host(move, dtype):
    moved = move(HOST.to("hpu"))
    assert type(moved) is torch.Tensor
    assert moved.device.type == "cpu"
    assert torch.equal(moved, HOST.to(dtype))


def test_a_move_to_where_it_is_gives_the_same_tensor_unless_a_copy_is_asked_for():
    device = HOST.to("hpu")
    assert device.to("hpu") is device
    assert device.to("hpu", torch.float32) is device
    assert device.to(torch.float32) is device
    copy = device.to("hpu", copy=True)
    copy.fill_(9)
    assert torch.equal(device.cpu(), HOST)
    assert device.double().device.type == "hpu"
    assert device.to(torch.int32).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_move_keeps_layout():
    image = torch.randn(1, 3, 4, 4).to(memory_format=torch.channels_last)
    device = image.to("hpu")
    assert device.is_contiguous(memory_format=torch.channels_last)
    assert device.cpu().is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(HOST.t().to("hpu").cpu(), HOST.t())


def test_conjugate_and_negative_views_arrive_resolved():
    host = torch.randn(3, dtype=torch.complex64)
    device = host.to("hpu")
    assert type(device.conj().cpu()) is torch.Tensor
    assert torch.equal(device.conj().cpu(), host.conj())
    assert torch.equal(device.conj().imag.cpu(), host.conj().imag)
    assert torch.equal(host.conj().to("hpu").cpu(), host.conj())


def test_gradients_cross_both_ways_in_the_leafs_dtype():
    host = HOST.clone().requires_grad_()
    loss = (host.to("hpu", torch.float64) * 2).cpu().sum() + host.sum()
    loss.backward()
    assert type(host.grad) is torch.Tensor
    assert host.grad.dtype == torch.float32
    assert torch.equal(host.grad, torch.full((2, 3), 3.0))
    device = HOST.to("hpu").requires_grad_()
    (device.cpu() ** 2).sum().backward()
    assert device.grad.device.type == "hpu"
    assert torch.equal(device.grad.cpu(), HOST * 2)


def test_no_graph_is_built_where_gradients_are_off():
    device = HOST.to("hpu").requires_grad_()
    with torch.no_grad():
        assert not device.cpu().requires_grad
    assert device.cpu().requires_grad


def test_inference_mode():
    with torch.inference_mode():
        device = HOST.to("hpu")
        result = torch.nn.functional.linear(device, device)[0]
        assert result.is_inference()
        assert torch.equal(result.cpu(), (HOST @ HOST.t())[0])
        device.view(6).add_(1)
        assert device.sum().item() == 21.0
    outside = HOST.to("hpu")
    with pytest.raises(RuntimeError, match=r"[Ii]nference tensor"):
        device.add_(outside)


def test_a_copy_to_the_host_is_its_threads_own():
    """A conversion on the device, while another thread is about to copy to the host."""
    device = HOST.to("hpu")
    arrived, may_go_on = threading.Event(), threading.Event()

    class Wait(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            arrived.set()
            assert may_go_on.wait(60)
            return func(*args, **(kwargs or {}))

    def copy() -> torch.Tensor:
        with Wait():
            return device.cpu()

    with ThreadPoolExecutor() as pool:
        copied = pool.submit(copy)
        assert arrived.wait(60)
        assert device.double().device.type == "hpu"
        may_go_on.set()
        assert type(copied.result(60)) is torch.Tensor


def test_storages_for_the_device():
    """PyTorch asks for them where workers collate, and C++ alone would crash."""
    storage = torch.UntypedStorage(8, device="hpu")
    tensor = torch.empty(0, device="hpu").set_(storage, 0, (2,))
    assert tensor.fill_(3).tolist() == [3.0, 3.0]
    assert HOST.untyped_storage().hpu().tolist() == HOST.untyped_storage().tolist()
    assert torch.UntypedStorage([1, 2]).tolist() == [1, 2]
    assert torch.UntypedStorage(4, device="meta").device.type == "meta"
    with pytest.raises(RuntimeError, match="a process has one HPU"):
        torch.UntypedStorage(8, device="hpu:1")


def test_copies_are_recorded():
    with emulator.record() as events:
        device = HOST.to("hpu")
        device.cpu()
    assert [event.kind for event in events] == ["h2d", "d2h"]
    assert all("test_transfers.py" in event.line for event in events)


@pytest.mark.parametrize("make", [torch.tensor, torch.as_tensor, torch.asarray])
def test_python_data_is_copied_to_the_device(make):
    with emulator.record() as events:
        assert make([[1.0], [2.0]], device="hpu").tolist() == [[1.0], [2.0]]
        with torch.device("hpu"):
            assert make(3.0).device.type == "hpu"
        make([1.0])
    kinds = [(event.kind, event.cause) for event in events]
    assert kinds == [
        ("h2d", make.__name__),
        ("host_read", "tolist"),
        ("d2h", "_to_copy"),
        ("h2d", make.__name__),
    ]
    assert all("test_transfers.py" in event.line for event in events)


@pytest.mark.parametrize("make", [torch.tensor, torch.as_tensor, torch.asarray])
def test_a_tensor_from_numbers_on_the_device_reads_them(make):
    loss = torch.ones(2, device="hpu").sum()
    with emulator.record() as events:
        assert make([[0.0, loss], (loss, 1.0)]).tolist() == [[0.0, 2.0], [2.0, 1.0]]
    kinds = [(event.kind, event.cause) for event in events if event.kind != "compile"]
    assert kinds == [("flush", make.__name__), ("host_read", make.__name__)]


def test_a_number_is_assigned_on_the_device():
    """C++ fills a tensor on the device with it: no copy from the host, and so no flush."""
    tensor, one = torch.zeros(2, 3, device="hpu") + 1, torch.ones(1, dtype=int, device="hpu")
    with emulator.record() as events:
        tensor[0] = 2
        tensor[:, 1] = 0.5
        tensor[tensor > 1] = True
        tensor[one, 0] = 7
    assert events == []
    assert tensor.tolist() == [[1.0, 0.5, 1.0], [7.0, 0.5, 1.0]]
    whole = torch.zeros(2, dtype=torch.int64, device="hpu")
    whole[0] = 2**40 + 1
    assert whole.tolist() == [2**40 + 1, 0]
    with pytest.raises(TypeError, match="can't assign a list to a"):
        whole[0] = [1]
    with pytest.raises(IndexError, match="index 2 is out of bounds"):
        whole[2] = 1


def test_other_devices():
    assert HOST.to("hpu").to("meta").device.type == "meta"
    made = torch.nn.Linear(2, 2, device="meta").to_empty(device="hpu")
    assert made.weight.device.type == "hpu"


def test_pinned_memory():
    pinned = HOST.pin_memory()
    assert pinned.is_pinned()
    assert not HOST.is_pinned()
    assert pinned.pin_memory() is pinned
    assert torch.equal(pinned.to("hpu", non_blocking=True).cpu(), HOST)
    with pytest.raises(RuntimeError, match="cannot pin 'hpu' tensors"):
        HOST.to("hpu").pin_memory()
    loader = torch.utils.data.DataLoader([1.0, 2.0], batch_size=2, pin_memory=True)
    (batch,) = loader
    assert batch.tolist() == [1.0, 2.0]
    assert batch.is_pinned()


def test_packed_sequences_keep_their_lengths_on_the_host():
    host = torch.randn(4, 2, 3)
    lengths = torch.tensor([4, 2])
    expected = torch.nn.utils.rnn.pack_padded_sequence(host, lengths)
    found = torch.nn.utils.rnn.pack_padded_sequence(host.to("hpu"), lengths)
    assert found.data.device.type == "hpu"
    assert type(found.batch_sizes) is torch.Tensor
    assert torch.equal(found.data.cpu(), expected.data)
    lstm = torch.nn.LSTM(3, 5)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(lstm(expected)[0])
    on_device, _ = torch.nn.utils.rnn.pad_packed_sequence(lstm.to("hpu")(found)[0])
    torch.testing.assert_close(on_device.cpu(), padded)


def test_assigning_data():
    parameter = torch.nn.Parameter(HOST.clone())
    original = parameter
    parameter.data = HOST.to("hpu") + 1
    assert parameter is original
    assert parameter.device.type == "hpu"
    assert isinstance(parameter, torch.nn.Parameter)
    assert parameter.requires_grad
    parameter.data = torch.zeros(4, device="hpu")
    assert parameter.shape == (4,)
    assert (parameter + 1).tolist() == [1.0] * 4
    parameter.data.fill_(3)
    assert parameter.tolist() == [3.0] * 4
    parameter.data = torch.ones(2)
    assert type(parameter) is torch.nn.Parameter
    assert parameter.device.type == "cpu"
    tensor = torch.zeros(2, device="hpu")
    tensor.data = torch.ones(3)
    assert type(tensor) is torch.Tensor
    assert tensor.tolist() == [1.0] * 3


def test_type_as_changes_the_device_too():
    on_hpu, on_cpu = torch.ones(2, device="hpu"), torch.zeros(2, dtype=torch.float64)
    moved = on_cpu.type_as(on_hpu)
    assert (moved.device, moved.dtype) == (on_hpu.device, torch.float32)
    back = on_hpu.type_as(on_cpu)
    assert (type(back), back.dtype) == (torch.Tensor, torch.float64)
    assert on_cpu.type_as(torch.ones(1)).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")
@pytest.mark.parametrize("convert", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_sparse_tensors_are_refused(convert):
    message = r"holds dense tensors only, but this one is torch\.sparse_\w+\. Call to_dense\(\)"
    with pytest.raises(NotImplementedError, match=message):
        convert(HOST).to("hpu")
    with pytest.raises(NotImplementedError, match=message):
        convert(HOST.to("hpu"))
