"""The copy of a checkpoint on the host: equal, apart from the device, and no larger than needed."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lightning_gaudi import emulator
from lightning_gaudi.checkpoint.host_copy import copy_to_host


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def num_file_bytes(content: object) -> int:
    file = io.BytesIO()
    torch.save(content, file)
    return file.tell()


def test_values_and_structure_are_kept() -> None:
    weight = torch.randn(3, 4, device="hpu")
    checkpoint = {
        "weight": weight,
        "list": [1, "text", {"inner": torch.arange(3, device="hpu")}],
        "tuple": (torch.ones(2), None),
        "scalar": torch.tensor(2.5, device="hpu"),
        "empty": torch.empty(0, 3, device="hpu"),
        "bfloat16": torch.randn(4, device="hpu").bfloat16(),
        "channels_last": torch.randn(1, 2, 3, 3, device="hpu").to(
            memory_format=torch.channels_last
        ),
        "conjugate": torch.randn(3, dtype=torch.cfloat).conj(),
        "sparse": torch.eye(3).to_sparse(),
    }
    copy = copy_to_host(checkpoint).content
    assert list(copy) == list(checkpoint)
    assert copy["list"][:2] == [1, "text"]
    assert copy["channels_last"].stride() == checkpoint["channels_last"].stride()
    for name in ("weight", "scalar", "empty", "bfloat16", "channels_last"):
        assert type(copy[name]) is Tensor
        assert copy[name].device.type == "cpu"
        torch.testing.assert_close(copy[name], checkpoint[name].cpu(), rtol=0, atol=0)
    assert copy["list"][2]["inner"].tolist() == [0, 1, 2]
    assert torch.equal(copy["conjugate"], checkpoint["conjugate"])
    assert torch.equal(copy["sparse"].to_dense(), torch.eye(3))


def test_tensors_inside_of_objects_are_found() -> None:
    module = nn.Linear(2, 2).to("hpu")
    holder = SimpleNamespace(module=module)
    copy = copy_to_host({"holder": holder}).content["holder"]
    assert type(copy.module.weight) is nn.Parameter
    assert copy.module.weight.device.type == "cpu"
    assert copy.module.weight.requires_grad
    torch.testing.assert_close(copy.module.weight, module.weight.cpu(), rtol=0, atol=0)


def test_an_object_that_occurs_twice_stays_one() -> None:
    tensor, names = torch.ones(2, device="hpu"), ["a"]
    copy = copy_to_host({"a": (tensor, names), "b": (tensor, names)}).content
    assert copy["a"][0] is copy["b"][0]
    assert copy["a"][1] is copy["b"][1]
    assert copy["a"][1] is not names


def test_tied_weights_and_views_share_one_copy() -> None:
    weight = torch.arange(12.0, device="hpu").view(3, 4)
    checkpoint = {"weight": weight, "tied": weight.detach(), "row": weight[1], "turned": weight.t()}
    host = copy_to_host(checkpoint)
    assert len({address(tensor) for tensor in host.content.values()}) == 1
    assert host.num_bytes == 12 * 4
    assert host.content["row"].tolist() == [4.0, 5.0, 6.0, 7.0]
    assert torch.equal(host.content["turned"], host.content["weight"].t())
    host.content["tied"][1, 0] = -1
    assert host.content["row"][0] == -1


def test_memory_that_nothing_looks_at_is_left_behind() -> None:
    for device in ("hpu", "cpu"):
        whole = torch.arange(100_000.0, device=device)
        views = {
            "slice": whole[10:20],
            "apart": whole[90_000:90_010],
            "overlap": (whole[50:60], whole[55:70]),
            "column": torch.ones(1000, 100, device=device)[:, 3],
            "expanded": whole[5:6].expand(1000),
        }
        host = copy_to_host(views, keep_host_tensors=True)
        assert host.num_bytes == 4 * (10 + 10 + 20 + 1000 + 1)
        assert num_file_bytes(host.content) < 10_000
        assert num_file_bytes({"slice": torch.arange(100_000.0)[10:20]}) > 400_000  # PyTorch's own
        for name in ("slice", "apart", "column", "expanded"):
            assert torch.equal(host.content[name], views[name].cpu())
        first, second = host.content["overlap"]
        assert address(first) == address(second)
        assert (first[5:] == second[:5]).all()


def test_one_memory_seen_as_two_kinds_of_numbers() -> None:
    number = torch.ones(2, device="hpu")
    copy = copy_to_host({"float": number, "int": number.view(torch.int32)}).content
    assert copy["int"].tolist() == [0x3F800000] * 2
    assert num_file_bytes(copy)  # PyTorch refuses to save them as one


def test_one_break_of_the_lazy_graph() -> None:
    weights = [torch.randn(8, device="hpu") for _ in range(6)]
    pending = [weight * 2 for weight in weights] + [weight[2:5] for weight in weights]
    with emulator.record() as events:
        copy_to_host({"pending": pending, "weights": weights})
    assert sum(event.kind == "flush" for event in events) == 1


def test_a_copy_does_not_change_with_what_it_was_made_of() -> None:
    checkpoint = {"hpu": torch.zeros(2, device="hpu"), "cpu": torch.zeros(2), "names": {"a": 1}}
    copy = copy_to_host(checkpoint).content
    checkpoint["hpu"].add_(1)
    checkpoint["cpu"].add_(1)
    checkpoint["names"]["b"] = 2
    assert copy["hpu"].tolist() == copy["cpu"].tolist() == [0.0, 0.0]
    assert copy["names"] == {"a": 1}


def test_tensors_on_the_host_need_no_second_copy() -> None:
    tensor = torch.ones(5)
    kept = copy_to_host({"tensor": tensor}, keep_host_tensors=True).content["tensor"]
    assert address(kept) == address(tensor)
    assert address(copy_to_host({"tensor": tensor}).content["tensor"]) != address(tensor)


def test_what_needs_no_memory_or_has_a_type_of_its_own() -> None:
    class Labelled(Tensor):
        pass

    leaf = torch.ones(2, requires_grad=True)
    copy = copy_to_host({"meta": torch.empty(3, device="meta"), "leaf": leaf}).content
    assert copy["meta"].device.type == "meta"
    assert copy["leaf"].requires_grad
    named = torch.ones(2)
    named.name_of_it = "kept"  # type: ignore[attr-defined]
    assert copy_to_host({"named": named}).content["named"].name_of_it == "kept"


def test_what_cannot_be_pickled_shows_at_once() -> None:
    with pytest.raises(Exception, match="pickle"):
        copy_to_host({"function": lambda: 0})
