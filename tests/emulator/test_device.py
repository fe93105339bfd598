"""What is on the device, and what a tensor there answers from Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch

FACTORIES = {
    "zeros": lambda **k: torch.zeros(2, 3, **k),
    "ones": lambda **k: torch.ones(2, 3, **k),
    "full": lambda **k: torch.full((2, 3), 1.5, **k),
    "full_int": lambda **k: torch.full((2,), 7, **k),
    "arange": lambda **k: torch.arange(5, **k),
    "arange_step": lambda **k: torch.arange(1.0, 2.0, 0.25, **k),
    "linspace": lambda **k: torch.linspace(0, 1, 5, **k),
    "logspace": lambda **k: torch.logspace(0, 1, 5, **k),
    "eye": lambda **k: torch.eye(3, 2, **k),
    "tensor": lambda **k: torch.tensor([[1, 2], [3, 4]], **k),
    "tensor_scalar": lambda **k: torch.tensor(2.5, **k),
    "tensor_bool": lambda **k: torch.tensor([True, False], **k),
    "as_tensor": lambda **k: torch.as_tensor(np.arange(3.0), **k),
    "asarray": lambda **k: torch.asarray([1.0, 2.0], **k),
    "scalar_tensor": lambda **k: torch.scalar_tensor(3.0, **k),
    "tril_indices": lambda **k: torch.tril_indices(3, 3, **k),
    "triu_indices": lambda **k: torch.triu_indices(3, 4, 1, **k),
    "hann_window": lambda **k: torch.hann_window(4, **k),
    "rand": lambda **k: torch.rand(3, **k),
    "randn": lambda **k: torch.randn(3, **k),
    "randint": lambda **k: torch.randint(10, (4,), **k),
    "randperm": lambda **k: torch.randperm(6, **k),
    "normal": lambda **k: torch.normal(1.0, 2.0, (3,), **k),
}


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("device", ["hpu", "hpu:0", torch.device("hpu"), torch.device("hpu", 0)])
def test_a_factory_makes_on_the_device_what_it_makes_on_the_cpu(name, device):
    torch.manual_seed(1)
    expected = FACTORIES[name]()
    torch.manual_seed(1)
    found = FACTORIES[name](device=device)
    assert found.device == torch.device("hpu", 0)
    assert found.is_hpu
    assert not found.is_cpu
    assert found.get_device() == 0
    assert found.dtype == expected.dtype
    assert torch.equal(found.cpu(), expected)


# PyTorch leaves `normal` out of what a device block redirects.
@pytest.mark.parametrize("name", sorted(FACTORIES.keys() - {"normal"}))
def test_factories_inside_a_device_block(name):
    torch.manual_seed(1)
    expected = FACTORIES[name]()
    torch.manual_seed(1)
    with torch.device("hpu"):
        found = FACTORIES[name]()
    assert found.device.type == "hpu"
    assert torch.equal(found.cpu(), expected)


def test_a_module_made_inside_a_device_block():
    torch.manual_seed(1)
    expected = torch.nn.Linear(3, 2)
    torch.manual_seed(1)
    with torch.device("hpu"):
        module = torch.nn.Linear(3, 2)
    assert {p.device.type for p in module.parameters()} == {"hpu"}
    assert torch.equal(module.weight.cpu(), expected.weight)


def test_the_default_device_can_be_the_hpu():
    torch.set_default_device("hpu")
    try:
        assert torch.ones(2).device.type == "hpu"
        assert torch.tensor([1.0]).device.type == "hpu"
    finally:
        torch.set_default_device(None)
    assert torch.ones(2).device.type == "cpu"


LIKE = ["empty_like", "zeros_like", "ones_like", "rand_like", "randn_like"]


@pytest.mark.parametrize("name", LIKE)
def test_like_functions_follow_the_tensor_unless_told(name):
    function = getattr(torch, name)
    on_device, on_host = torch.ones(2, device="hpu"), torch.ones(2)
    assert function(on_device).device.type == "hpu"
    assert function(on_device, device="cpu").device.type == "cpu"
    assert function(on_device, device="hpu").device.type == "hpu"
    assert function(on_host, device="hpu").device.type == "hpu"
    assert function(on_host).device.type == "cpu"
    assert function(on_device, dtype=torch.float64).dtype == torch.float64


def test_like_functions_with_arguments():
    on_device = torch.ones(3, device="hpu")
    assert torch.full_like(on_device, 2.0).tolist() == [2.0, 2.0, 2.0]
    assert type(torch.full_like(on_device, 2.0, device="cpu")) is torch.Tensor
    assert torch.randint_like(on_device, 5, device="cpu").device.type == "cpu"
    assert torch.randint_like(on_device, 5).device.type == "hpu"


def test_new_methods_follow_the_tensor_unless_told():
    tensor = torch.ones(2, dtype=torch.float64, device="hpu")
    for made in (
        tensor.new_zeros(3),
        tensor.new_ones(3),
        tensor.new_full((3,), 4.0),
        tensor.new_empty(3),
        tensor.new_tensor([1, 2]),
        tensor.new([1.0]),
    ):
        assert made.device.type == "hpu"
        assert made.dtype == torch.float64
    assert tensor.new_tensor([1, 2]).tolist() == [1.0, 2.0]
    assert tensor.new_full((1,), 4.0).tolist() == [4.0]
    assert type(tensor.new_zeros(3, device="cpu")) is torch.Tensor
    assert type(tensor.new_tensor([1.0], device="cpu")) is torch.Tensor
    assert tensor.new_zeros(3, dtype=torch.int64).dtype == torch.int64
    with pytest.raises(RuntimeError, match="hpu:1 does not exist"):
        tensor.new_zeros(3, device="hpu:1")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(2, device="hpu:1"),
        lambda: torch.zeros(2).to("hpu:1"),
        lambda: torch.zeros(2, device="hpu").to("hpu:1"),
        lambda: torch.zeros(2, device=torch.device("hpu", 3)),
        lambda: torch.zeros_like(torch.zeros(2, device="hpu"), device="hpu:1"),
        lambda: torch.nn.Linear(2, 2).to("hpu:1"),
        lambda: torch.hpu.set_device(1),
        lambda: torch.Generator(device="hpu:1"),
    ],
)
def test_a_second_card_does_not_exist(make):
    with pytest.raises(RuntimeError, match=r"device hpu:\d does not exist: a process has one HPU"):
        make()


def test_what_a_tensor_says_of_itself():
    tensor = torch.tensor([1.0, 2.0], device="hpu")
    assert repr(tensor) == "tensor([1., 2.], device='hpu:0')"
    assert str(tensor) == repr(tensor)
    assert f"{tensor}" == repr(tensor)
    assert repr(tensor.requires_grad_()) == "tensor([1., 2.], device='hpu:0', requires_grad=True)"
    assert repr(tensor * 2) == "tensor([2., 4.], device='hpu:0', grad_fn=<MulBackward0>)"
    assert repr(torch.nn.Parameter(tensor)).startswith("Parameter containing:\ntensor([1., 2.]")
    scalar = torch.tensor(1.25, device="hpu")
    assert f"{scalar:.1f}|{scalar:>6}" == "1.2|  1.25"


def test_a_tensor_becomes_python_numbers():
    tensor = torch.tensor([[1.5, 0.0], [3.0, 4.0]], device="hpu")
    assert tensor.tolist() == [[1.5, 0.0], [3.0, 4.0]]
    assert tensor[0, 0].item() == 1.5
    assert float(tensor[0, 0]) == 1.5
    assert int(tensor[1, 0]) == 3
    assert bool(tensor[1, 1])
    assert not bool(tensor[0, 1])
    assert len(tensor) == 2
    assert 3.0 in tensor
    assert [row.tolist() for row in tensor] == [[1.5, 0.0], [3.0, 4.0]]
    assert [10, 20, 30][torch.tensor(1, device="hpu")] == 20
    assert torch.tensor([tensor[0, 0], tensor[1, 0]]).tolist() == [1.5, 3.0]
    with pytest.raises(RuntimeError, match="ambiguous"):
        bool(tensor)


def test_numpy_asks_for_a_copy_to_the_host():
    tensor = torch.ones(2, device="hpu", requires_grad=True)
    for convert in (tensor.detach().numpy, lambda: np.asarray(tensor.detach())):
        with pytest.raises(TypeError, match=r"can't convert hpu:0 device type tensor to numpy"):
            convert()
    assert tensor.numpy(force=True).tolist() == [1.0, 1.0]
    assert tensor.detach().cpu().numpy().tolist() == [1.0, 1.0]


def test_indexing_equals_the_cpus():
    host = torch.arange(12.0).reshape(3, 4)
    mask_row = torch.tensor([True, False, True])
    for index in (
        0,
        (1, 2),
        slice(0, 2),
        (slice(None), slice(1, 4, 2)),
        (..., 1),
        (None, 2),
        [0, 2],
        torch.tensor([2, 0]),
        (torch.tensor([0, 1]), torch.tensor([1, 3])),
        mask_row,
        host > 5,
    ):
        expected = host[index]
        found = host.to("hpu")[index]
        assert found.device.type == "hpu"
        assert torch.equal(found.cpu(), expected)
    device = host.to("hpu")
    assert torch.equal(device[device > 5].cpu(), host[host > 5])
    assert torch.equal(device[torch.tensor([2, 0], device="hpu")].cpu(), host[[2, 0]])


def test_assigning_to_indices_equals_the_cpus():
    def write(tensor: torch.Tensor) -> torch.Tensor:
        tensor[0] = 1
        tensor[1] = torch.ones(3)  # a copy from the host, allowed on any device
        tensor[tensor == 0] = 5
        tensor[torch.tensor([2])] = tensor[:1] * 7
        tensor[:, 0] = torch.tensor(9.0)
        tensor[0, 0] = tensor[1, 1]
        return tensor

    assert torch.equal(write(torch.zeros(3, 3, device="hpu")).cpu(), write(torch.zeros(3, 3)))


def test_generators():
    on_device, on_host = torch.Generator(device="hpu"), torch.Generator()
    assert on_device.device == torch.device("hpu", 0)
    assert on_host.device == torch.device("cpu")
    assert isinstance(on_device, torch.Generator)
    assert isinstance(on_host, torch.Generator)
    assert not isinstance(3, torch.Generator)
    drawn = torch.randn(3, generator=on_device.manual_seed(5), device="hpu")
    assert torch.equal(drawn.cpu(), torch.randn(3, generator=on_host.manual_seed(5)))


def test_random_state_can_be_put_back():
    state = torch.hpu.get_rng_state()
    first = torch.randn(3, device="hpu")
    torch.hpu.set_rng_state(state)
    assert torch.equal(torch.randn(3, device="hpu").cpu(), first.cpu())
    with torch.random.fork_rng(device_type="hpu"):
        torch.randn(5, device="hpu")
    torch.manual_seed(3)
    drawn = torch.randn(2, device="hpu")
    torch.hpu.manual_seed_all(3)
    assert torch.equal(torch.randn(2, device="hpu").cpu(), drawn.cpu())
    assert torch.hpu.initial_seed() == 3
    states = torch.hpu.get_rng_state_all()
    torch.hpu.set_rng_state_all(states)
    assert len(states) == 1


def test_the_accelerator_interface_answers():
    assert torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator() == torch.device("hpu")
    assert torch.accelerator.current_device_index() == 0
    torch.accelerator.synchronize()
    torch.accelerator.empty_cache()
    assert torch.accelerator.memory_allocated() == torch.hpu.memory_allocated()
    assert torch.accelerator.memory_stats()["Limit"] == torch.hpu.memory_stats()["Limit"]


def test_the_device_module_answers():
    assert torch.hpu.is_available()
    assert torch.hpu.device_count() == 1
    assert torch.hpu.current_device() == 0
    assert torch.hpu.get_device_name() == "GAUDI2"
    torch.hpu.set_device(0)
    torch.hpu.set_device("hpu:0")
    with torch.hpu.device(0):
        pass


def test_sparse_tensors_are_refused_by_name():
    with pytest.raises(NotImplementedError, match=r"dense tensors only, but this one is torch\.sp"):
        torch.eye(3).to_sparse().to("hpu")


def test_scripting_still_knows_the_functions_that_are_wrapped():
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = torch.jit.script(_scripted)
    assert scripted(torch.ones(2)).tolist() == [4.0, 4.0]


def _scripted(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x) + x + torch.tensor(3.0)


def test_the_device_modules_further_questions(monkeypatch):
    hpu = torch.hpu
    assert hpu.get_arch_list() == [hpu.get_device_name("hpu:0")] == ["GAUDI2"]
    assert hpu.get_gencode_flags() == ""
    assert hpu.is_bf16_supported() is True
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_DEVICES", "2")
    assert hpu.can_device_access_peer(0, 1) is True
    with pytest.raises(AssertionError, match="Both the ids are same"):
        hpu.can_device_access_peer(1, 1)
    with pytest.raises(AssertionError, match="Invalid device id"):
        hpu.can_device_access_peer(0, 2)
    with hpu.device_of(torch.ones(1, device="hpu")), hpu.device_of(torch.ones(1)):
        assert hpu.current_device() == 0
    monkeypatch.undo()


def test_which_card_and_where():
    from habana_frameworks.torch.utils import experimental

    assert experimental._get_device_type() == experimental.synDeviceType.synDeviceGaudi2
    assert experimental._get_device_type().value == 4
    tensor = torch.ones(3, device="hpu")
    assert experimental._data_ptr(tensor[1:]) == experimental._data_ptr(tensor) + 4
    assert experimental._compute_stream() == torch.hpu.current_stream().hpu_stream
    with pytest.raises(RuntimeError, match="the tensor is on the host"):
        experimental._data_ptr(torch.ones(1))


def test_the_accelerator_is_the_whole_of_pytorchs():
    accelerator = torch.accelerator
    assert accelerator.is_available()
    assert accelerator.current_accelerator(check_available=True) == torch.device("hpu")
    assert accelerator.device_count() == torch.hpu.device_count() == 1
    accelerator.set_device_index(0)
    assert accelerator.current_stream() == torch.hpu.current_stream()


def test_legacy_types_name_the_device():
    tensor = torch.ones(2, device="hpu")
    assert tensor.type() == "torch.hpu.FloatTensor"
    assert torch.ones(2, dtype=torch.int64, device="hpu").type() == "torch.hpu.LongTensor"
    assert tensor.type(torch.float64).type() == "torch.hpu.DoubleTensor"
    assert tensor.type("torch.hpu.HalfTensor").type() == "torch.hpu.HalfTensor"
    assert tensor.type("torch.HalfTensor").type() == "torch.HalfTensor"
    assert tensor.type(torch.DoubleTensor).type() == "torch.DoubleTensor"
    assert torch.ones(2).type() == "torch.FloatTensor"


def test_memory_on_the_device_is_not_handed_to_other_libraries():
    tensor = torch.ones(2, device="hpu")
    with pytest.raises(RuntimeError, match="Cannot pack tensors on hpu:0"):
        tensor.__dlpack__()
    with pytest.raises(RuntimeError, match="Cannot pack tensors on hpu:0"):
        torch.utils.dlpack.to_dlpack(tensor)
    with pytest.raises(ValueError, match="Unknown device type hpu for Dlpack"):
        torch.from_dlpack(tensor)
    assert torch.from_dlpack(torch.ones(2)).tolist() == [1.0, 1.0]
