"""Files hold plain CPU tensors, and load onto the device in every way that PyTorch knows."""

from __future__ import annotations

import io
import pickle
import zipfile

import pytest
import torch
from torch import nn

from lightning_gaudi import emulator


def saved(value: object, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file, **options)
    file.seek(0)
    return file


def on_device() -> dict[str, object]:
    base = torch.arange(4.0, device="hpu")
    return {
        "tensor": base,
        "view": base[1:3],
        "leaf": torch.ones(2, device="hpu", requires_grad=True),
        "parameter": nn.Parameter(torch.ones(3, device="hpu")),
        "frozen": nn.Parameter(torch.ones(3, device="hpu"), requires_grad=False),
        "nested": [(base + 1, 3), "text"],
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_names_no_class_of_ours(legacy):
    file = saved(on_device(), _use_new_zipfile_serialization=not legacy)
    if legacy:
        content = file.getvalue()
    else:
        with zipfile.ZipFile(file) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"HPUTensor" not in content
    assert b"lightning_gaudi" not in content


def test_a_file_loads_where_there_is_no_emulator(run_python, tmp_path):
    torch.save({"module": nn.Linear(2, 2).to("hpu").state_dict()}, tmp_path / "file.pt")
    code = """
        import torch, sys
        state = torch.load("file.pt", weights_only=True)["module"]
        assert "lightning_gaudi" not in sys.modules
        print(type(state["weight"]).__name__, state["weight"].device, tuple(state["weight"].shape))
    """
    result = run_python(code, LIGHTNING_GAUDI_EMULATOR=None)
    assert result.stdout == "Tensor cpu (2, 2)\n"


def test_loading_gives_plain_tensors_with_values_ties_and_flags():
    loaded = torch.load(saved(on_device()), weights_only=True)
    assert type(loaded["tensor"]) is torch.Tensor
    assert loaded["tensor"].tolist() == [0.0, 1.0, 2.0, 3.0]
    loaded["tensor"][1] = 9
    assert loaded["view"].tolist() == [9.0, 2.0]
    assert loaded["leaf"].requires_grad
    assert type(loaded["parameter"]) is nn.Parameter
    assert loaded["parameter"].requires_grad
    assert not loaded["frozen"].requires_grad
    assert loaded["nested"][0][0].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_saving_a_result_of_autograd():
    leaf = torch.ones(2, device="hpu", requires_grad=True)
    assert torch.load(saved(leaf * 2)).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    "location",
    [
        "hpu",
        "hpu:0",
        torch.device("hpu"),
        torch.device("hpu", 0),
        {"cpu": "hpu"},
        {"cpu": "hpu:0"},
        lambda storage, place: torch.serialization.default_restore_location(storage, "hpu"),
    ],
)
@pytest.mark.parametrize("weights_only", [True, False])
def test_loading_onto_the_device(location, weights_only):
    loaded = torch.load(saved(on_device()), map_location=location, weights_only=weights_only)
    for name in ("tensor", "view", "leaf", "parameter", "frozen"):
        assert loaded[name].device.type == "hpu", name
    assert isinstance(loaded["parameter"], nn.Parameter)
    assert loaded["parameter"].requires_grad
    assert not loaded["frozen"].requires_grad
    assert loaded["leaf"].requires_grad
    loaded["tensor"][1] = 9
    assert loaded["view"].tolist() == [9.0, 2.0]
    assert loaded["nested"][0][0].device.type == "hpu"


def test_loading_elsewhere():
    file = saved({"tensor": torch.ones(2, device="hpu")})
    assert type(torch.load(file, map_location="cpu")["tensor"]) is torch.Tensor
    file.seek(0)
    assert type(torch.load(file, map_location=lambda storage, place: storage)["tensor"]) is (
        torch.Tensor
    )
    file.seek(0)
    assert torch.load(file, map_location="meta")["tensor"].device.type == "meta"
    file.seek(0)
    with pytest.raises(RuntimeError, match="hpu:2 does not exist"):
        torch.load(file, map_location="hpu:2")


def test_loaded_memory_counts():
    file = saved({"tensor": torch.ones(1024)})
    before = torch.hpu.memory_allocated()
    with emulator.record() as events:
        loaded = torch.load(file, map_location="hpu")
    assert torch.hpu.memory_allocated() - before == 4096
    assert [event.kind for event in events] == ["h2d"]
    del loaded
    assert torch.hpu.memory_allocated() == before


def test_memory_mapped_loading(tmp_path):
    torch.save({"tensor": torch.arange(5.0, device="hpu")}, tmp_path / "file.pt")
    loaded = torch.load(tmp_path / "file.pt", mmap=True, map_location="hpu")
    assert loaded["tensor"].device.type == "hpu"
    assert loaded["tensor"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_whole_modules_are_pickled_and_loaded():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).to("hpu")
    loaded = torch.load(saved(module), weights_only=False)
    assert {t.device.type for t in loaded.state_dict().values()} == {"cpu"}
    moved = torch.load(saved(module), map_location="hpu", weights_only=False)
    assert {t.device.type for t in moved.state_dict().values()} == {"hpu"}
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.cpu())
        assert torch.equal(moved.state_dict()[name].cpu(), value.cpu())
    assert [type(p) for p in loaded.parameters()] == [nn.Parameter] * 4
    assert all(isinstance(p, nn.Parameter) for p in moved.parameters())
    moved(torch.ones(4, 2, device="hpu")).sum().backward()


def test_tied_weights_stay_tied():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    module = nn.Sequential(first, second).to("hpu")
    loaded = torch.load(saved(module), map_location="hpu", weights_only=False)
    assert loaded[0].weight is loaded[1].weight


def test_attributes_are_saved():
    tensor = torch.ones(2, device="hpu")
    parameter = nn.Parameter(tensor.clone(), requires_grad=False)
    tensor.tag = parameter.tag = "mine"
    loaded = torch.load(saved([tensor, parameter]), weights_only=True)
    assert [type(t) for t in loaded] == [torch.Tensor, nn.Parameter]
    assert [vars(t) for t in loaded] == [{"tag": "mine"}, {"tag": "mine"}]
    assert not loaded[1].requires_grad


def test_plain_pickle():
    loaded = pickle.loads(pickle.dumps({"tensor": torch.arange(3, device="hpu")}))
    assert type(loaded["tensor"]) is torch.Tensor
    assert loaded["tensor"].tolist() == [0, 1, 2]


def test_pickling_a_pending_tensor_flushes():
    tensor = torch.ones(2, device="hpu") * 3
    with emulator.record() as events:
        loaded = torch.load(saved(tensor))
    assert loaded.tolist() == [3.0, 3.0]
    assert [event.kind for event in events if event.kind in ("flush", "d2h")] == ["flush", "d2h"]


def test_state_dicts_load_into_modules_on_the_device():
    source = nn.Linear(3, 2)
    module = nn.Linear(3, 2).to("hpu")
    weight = module.weight
    module.load_state_dict(source.state_dict())
    assert module.weight is weight
    assert module.weight.device.type == "hpu"
    assert torch.equal(module.weight.cpu(), source.weight)
    source.load_state_dict({name: value + 1 for name, value in module.state_dict().items()})
    assert type(source.weight) is nn.Parameter
    assert torch.equal(source.weight, module.weight.cpu() + 1)


def test_assigning_a_state_dict_takes_its_device():
    module = nn.Linear(3, 2).to("hpu")
    state = {name: value.cpu() + 1 for name, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    assert module.weight.device.type == "cpu"
    assert type(module.weight) is nn.Parameter
    assert torch.equal(module.weight, state["weight"])
    on_meta = nn.Linear(3, 2, device="meta")
    on_meta.load_state_dict({k: v.to("hpu") for k, v in state.items()}, assign=True)
    assert on_meta.weight.device.type == "hpu"
    assert isinstance(on_meta.weight, nn.Parameter)
    assert torch.equal(on_meta.weight.cpu(), state["weight"])


def test_loading_state_while_a_graph_is_alive():
    for place in ("cpu", "hpu"):
        module = nn.Linear(3, 2).to(place)
        loss = module(torch.ones(1, 3, device=place)).sum()
        module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()})
        loss.backward()
        assert module.weight.grad.tolist() == [[1.0] * 3] * 2
