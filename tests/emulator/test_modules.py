"""Modules and optimizers move to the device and back, and train there as on the CPU."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

from lightning_gaudi import emulator


def tied() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    return module


def test_a_round_trip_keeps_objects_values_and_ties():
    module = tied()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    parameters = list(module.parameters())
    for place in ("hpu", "cpu", "hpu", "cpu"):
        assert module.to(place) is module
        assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
        assert module[0].weight is module[2].weight
        assert {p.device.type for p in module.parameters()} == {place}
        assert all(isinstance(p, nn.Parameter) for p in module.parameters())
        for name, value in module.state_dict().items():
            assert torch.equal(value.cpu(), before[name])
    assert {type(p) for p in module.parameters()} == {nn.Parameter}


def test_every_way_to_move_a_module():
    for move in (
        lambda m: m.to("hpu"),
        lambda m: m.hpu(),
        lambda m: m.to(device="hpu", dtype=torch.float32),
        lambda m: m.to(torch.ones(1, device="hpu")),
    ):
        assert move(nn.Linear(2, 2)).weight.device.type == "hpu"
    module = nn.Linear(2, 2).to("hpu", torch.float64)
    assert module.weight.dtype == torch.float64
    assert module.float().weight.dtype == torch.float32
    assert module.half().weight.device.type == "hpu"
    assert module.cpu().weight.dtype == torch.float16


def test_attributes_and_hooks_of_parameters_stay():
    module = nn.Linear(2, 2)
    module.weight.tag = "mine"
    seen = []
    module.weight.register_hook(lambda grad: seen.append(("hook", grad.device.type)))
    module.weight.register_post_accumulate_grad_hook(lambda p: seen.append(("post", p.tag)))
    for place in ("hpu", "cpu", "hpu"):
        module.to(place)
        assert module.weight.tag == "mine"
        seen.clear()
        module(torch.ones(2, device=place)).sum().backward()
        assert seen == [("hook", place), ("post", "mine")]


def test_module_hooks_run():
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).to("hpu")
    seen = []
    module[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].device.type))
    module[0].register_forward_hook(lambda m, args, out: seen.append(out.device.type))
    module[0].register_full_backward_hook(lambda m, gi, go: seen.append(go[0].device.type))
    module(torch.ones(1, 2, device="hpu", requires_grad=True)).sum().backward()
    assert seen == ["hpu"] * 3


def test_gradients_move_with_their_parameters():
    module = nn.Linear(2, 2)
    module(torch.ones(2)).sum().backward()
    for place in ("hpu", "cpu"):
        module.to(place)
        assert module.weight.grad.device.type == place
        assert module.weight.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_module_moves_back_while_a_graph_is_alive():
    module = tied().to("hpu")
    loss = module(torch.ones(2, 3, device="hpu")).sum() + (module[0].weight ** 2).sum()
    module.to("cpu")
    assert {type(p) for p in module.parameters()} == {nn.Parameter}
    assert module[0].weight is module[2].weight
    module(torch.ones(2, 3)).sum().backward()
    assert module[0].weight.grad is not None
    with pytest.raises(RuntimeError, match="moved between cpu and hpu after the forward"):
        loss.backward()


def test_a_module_moves_back_while_an_exceptions_traceback_holds_the_graph():
    module = tied().to("hpu")
    before = module[0].weight.cpu()

    def step() -> None:
        out = module(torch.ones(2, 3, device="hpu")).sum()
        out.backward()
        raise KeyError("in the step")

    with pytest.raises(KeyError) as caught:
        step()
    assert caught.tb is not None  # it holds the frame of the step, and so the graph
    module.to("cpu")
    assert type(module[0].weight) is nn.Parameter
    assert torch.equal(module[0].weight.detach(), before.detach())
    assert module[0].weight.grad.device.type == "cpu"


def test_weak_references_do_no_harm():
    module = nn.Linear(2, 2)
    reference = weakref.ref(module.weight)
    module.to("hpu")
    assert reference() is module.weight
    module.to("cpu").double()
    assert reference() is module.weight
    assert module.weight.dtype == torch.float64


def test_modules_on_the_host_are_left_as_they_are():
    """What the emulator asks of PyTorch for its own moves must not reach CPU modules."""
    module = nn.Linear(2, 2)
    loss = module(torch.ones(2)).sum()
    reference = weakref.ref(module.bias)
    module.load_state_dict(module.state_dict())
    loss.backward()
    assert module.weight.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    module.half().float()
    assert reference() is module.bias
    lazy = nn.LazyLinear(3)
    lazy(torch.ones(2))
    assert type(lazy.weight) is nn.Parameter


def test_buffers_move():
    module = nn.BatchNorm1d(2)
    module.register_buffer("scratch", torch.ones(2), persistent=False)
    module.to("hpu")
    assert {b.device.type for b in module.buffers()} == {"hpu"}
    assert "scratch" not in module.state_dict()
    assert {b.device.type for b in module.cpu().buffers()} == {"cpu"}


def test_a_module_moves_under_inference_mode():
    host = nn.Linear(2, 2)
    module = copy.deepcopy(host)
    weight, x = module.weight, torch.ones(1, 2)
    with torch.inference_mode():
        module.to("hpu")
        assert module.weight is weight
        assert weight.device.type == "hpu"
        assert torch.equal(module(x.to("hpu")).cpu(), host(x))
        assert module.half().weight.dtype == torch.float16
        assert module.cpu().weight.device.type == "cpu"
    assert torch._has_compatible_shallow_copy_type(x.to("hpu"), x)


def test_deepcopy_of_a_module():
    module = tied().to("hpu")
    module(torch.ones(1, 3, device="hpu")).sum().backward()
    copied = copy.deepcopy(module)
    assert copied[0].weight is copied[2].weight
    assert copied[0].weight is not module[0].weight
    assert isinstance(copied[0].weight, nn.Parameter)
    assert copied[0].weight.device.type == "hpu"
    assert copied[0].weight.grad is None  # as PyTorch's own
    with torch.no_grad():
        copied[0].weight.zero_()
    assert module[0].weight.abs().sum().item() > 0


def test_deepcopy_of_tensors():
    tensor = torch.ones(2, device="hpu", requires_grad=True)
    (tensor * 2).sum().backward()
    tensor.tag = ["mine"]
    copied = copy.deepcopy({"a": tensor, "b": tensor})
    assert copied["a"] is copied["b"]
    assert copied["a"].requires_grad
    assert copied["a"].grad.tolist() == [2.0, 2.0]
    assert copied["a"].grad is not tensor.grad
    assert copied["a"].tag == ["mine"]
    assert copied["a"].tag is not tensor.tag
    assert isinstance(copy.deepcopy(nn.Buffer(torch.ones(2, device="hpu"))), nn.Buffer)
    with pytest.raises(RuntimeError, match="Only Tensors created explicitly by the user"):
        copy.deepcopy(tensor * 2)


def test_deepcopy_keeps_what_shares_memory_together():
    whole = torch.arange(6.0, device="hpu")
    table, row, bits = whole.view(2, 3).t(), whole[1:3], whole.view(torch.int32)
    in_use = torch.hpu.memory_allocated()
    copied = copy.deepcopy([row, table, whole])
    assert torch.hpu.memory_allocated() == in_use + 24
    copied[0].mul_(10)
    assert copied[2].tolist() == [0.0, 10.0, 20.0, 3.0, 4.0, 5.0]
    assert torch.equal(copied[1].cpu(), copied[2].cpu().view(2, 3).t())
    assert (copied[0].storage_offset(), copied[1].stride()) == (1, (1, 3))
    assert not copied[0]._is_view()
    assert whole.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert torch.equal(copy.deepcopy(bits).cpu(), bits.cpu())
    conjugate = torch.tensor([1 + 2j], device="hpu").conj()
    assert copy.deepcopy(conjugate).tolist() == [1 - 2j]


def test_a_shallow_copy_is_on_the_device_and_in_the_same_memory():
    tensor = torch.ones(2, device="hpu", requires_grad=True)
    (tensor * 2).sum().backward()
    tensor.tag = ["mine"]
    shallow = copy.copy(tensor)
    assert shallow.device.type == "hpu"
    assert (shallow.requires_grad, shallow.is_leaf, shallow.grad) == (True, True, None)
    assert shallow.tag is tensor.tag
    shallow.detach().add_(1)
    assert tensor.tolist() == [2.0, 2.0]
    parameter = copy.copy(nn.Parameter(tensor.detach(), requires_grad=False))
    assert isinstance(parameter, nn.Parameter)
    assert not parameter.requires_grad
    assert parameter.data_ptr() == tensor.data_ptr()
    assert isinstance(copy.copy(nn.Buffer(tensor.detach())), nn.Buffer)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


def train(module: nn.Module, name: str, place: str) -> torch.optim.Optimizer:
    optimizer = OPTIMIZERS[name](module.parameters())
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        batch = torch.randn(4, 3, generator=generator).to(place)

        def closure(batch: torch.Tensor = batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss = module(batch).pow(2).sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            return loss

        optimizer.step(closure)
    return optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_equals_the_cpus(name):
    host, device = tied(), tied().to("hpu")
    expected = train(host, name, "cpu")
    found = train(device, name, "hpu")
    for a, b in zip(host.parameters(), device.parameters(), strict=True):
        assert b.device.type == "hpu"
        assert torch.equal(b.cpu(), a)
    states = zip(expected.state.values(), found.state.values(), strict=True)
    for state, state_on_device in states:
        assert state.keys() == state_on_device.keys()
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(state_on_device[key].cpu(), value)
                if value.dim():
                    assert state_on_device[key].device.type == "hpu"


def test_the_device_is_no_foreach_default():
    parameters = list(nn.Linear(2, 2).to("hpu").parameters())
    from torch.optim.optimizer import _default_to_fused_or_foreach

    assert _default_to_fused_or_foreach(parameters, False, False) == (False, False)


def test_optimizer_state_goes_to_where_the_parameters_are():
    host = tied()
    state = train(host, "adamw", "cpu").state_dict()
    device = tied().to("hpu")
    optimizer = OPTIMIZERS["adamw"](device.parameters())
    optimizer.load_state_dict(state)
    assert {s["exp_avg"].device.type for s in optimizer.state.values()} == {"hpu"}
    assert {s["step"].device.type for s in optimizer.state.values()} == {"cpu"}
    for a, b in zip(state["state"].values(), optimizer.state.values(), strict=True):
        assert torch.equal(a["exp_avg"], b["exp_avg"].cpu())
    again = tied()
    back = OPTIMIZERS["adamw"](again.parameters())
    back.load_state_dict(optimizer.state_dict())
    assert {type(s["exp_avg"]) for s in back.state.values()} == {torch.Tensor}


def test_an_optimizer_made_before_the_move_goes_on():
    module = tied()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module.to("hpu")
    before = module[0].weight.cpu()
    module(torch.ones(1, 3, device="hpu")).sum().backward()
    grad = module[0].weight.grad.cpu()
    optimizer.step()
    assert torch.equal(module[0].weight.cpu(), before - 0.5 * grad)


def test_clipping():
    for clip in (
        lambda p: torch.nn.utils.clip_grad_norm_(p, 0.1),
        lambda p: torch.nn.utils.clip_grad_norm_(p, 0.1, norm_type=float("inf"), foreach=False),
        lambda p: torch.nn.utils.clip_grad_value_(p, 0.01),
    ):
        host, device = tied(), tied().to("hpu")
        host(torch.ones(2, 3)).sum().backward()
        device(torch.ones(2, 3, device="hpu")).sum().backward()
        expected, found = clip(host.parameters()), clip(device.parameters())
        if expected is not None:
            assert found.device.type == "hpu"
            assert torch.equal(found.cpu(), expected)
        for a, b in zip(host.parameters(), device.parameters(), strict=True):
            assert torch.equal(b.grad.cpu(), a.grad)


def test_parametrizations_and_weight_averages():
    module = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)).to("hpu")
    module(torch.ones(1, 3, device="hpu")).sum().backward()
    assert {p.device.type for p in module.parameters()} == {"hpu"}
    average = torch.optim.swa_utils.AveragedModel(tied().to("hpu"))
    average.update_parameters(tied().to("hpu"))
    assert {p.device.type for p in average.parameters()} == {"hpu"}


def test_functional_calls():
    module = nn.Linear(2, 2).to("hpu")
    replaced = {"weight": torch.eye(2, device="hpu"), "bias": torch.zeros(2, device="hpu")}
    called = torch.func.functional_call(module, replaced, torch.ones(1, 2, device="hpu"))
    assert called.tolist() == [[1.0, 1.0]]


def test_encoder_layers_take_no_path_that_a_card_does_not_have():
    """PyTorch's fused layers are for backends from outside its tree, and Habana's is inside."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 8)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            expected = encoder(x, src_key_padding_mask=mask)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        encoder.to("hpu")
        x, mask = x.to("hpu"), mask.to("hpu")
        with emulator.record() as events:
            found = encoder(x, src_key_padding_mask=mask)
    assert [e for e in events if e.kind in ("host_read", "cpu_fallback")] == []
    torch.testing.assert_close(found.cpu(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lazy_modules_move_before_they_have_a_shape(dtype):
    def make() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d(), nn.LazyConv1d(2, 1))

    host, device = make().to(dtype), make().to("hpu", dtype)
    x = torch.randn(2, 4, 4, dtype=dtype)
    torch.manual_seed(1)
    expected = host(x)
    torch.manual_seed(1)
    found = device(x.to("hpu"))
    assert torch.equal(found.cpu(), expected)
    assert {type(m) for m in device} == {nn.Linear, nn.BatchNorm1d, nn.Conv1d}
    for a, b in zip(host.state_dict().values(), device.state_dict().values(), strict=True):
        assert b.device.type == "hpu"
        assert torch.equal(b.cpu(), a)
    assert all(isinstance(p, nn.Parameter) for p in device.parameters())
    found.sum().backward()
    assert device[0].weight.grad.device.type == "hpu"


def test_lazy_modules_move_back_before_they_have_a_shape():
    module = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()).to("hpu").to("cpu")
    assert type(module(torch.ones(2, 4))) is torch.Tensor
    assert {type(b) for b in module.buffers()} == {torch.Tensor}
    with pytest.raises(RuntimeError, match="device hpu:1 does not exist"):
        nn.LazyLinear(2).to("hpu:1")
