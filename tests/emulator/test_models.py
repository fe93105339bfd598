"""Real architectures from config: forward, backward and optimizer steps equal the CPU's.

Equal means bit for bit: the emulated HPU runs the CPU's own kernels. The few that need a tolerance
are named with the reason.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from emulator.model_zoo import DIFFUSION, LANGUAGE_AND_VISION, Case, gpt2, llama
from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NAMES = [f"{name}-{attention}" for name in LANGUAGE_AND_VISION for attention in ("sdpa", "eager")]
NAMES += list(DIFFUSION)


def make(name: str) -> Case:
    torch.manual_seed(0)
    family, _, attention = name.partition("-")
    if attention:
        pytest.importorskip("transformers")
        return LANGUAGE_AND_VISION[family](attention)
    pytest.importorskip("diffusers")
    return DIFFUSION[family]()


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor that an output holds, in caches and other objects too."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    if hasattr(value, "__dict__"):
        return tensors_in(vars(value))
    return []


def to_hpu(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.to("hpu") if isinstance(v, Tensor) else v for k, v in inputs.items()}


def loss_of(outputs: Any) -> Tensor:
    found = getattr(outputs, "loss", None)
    return found if found is not None else (tensors_in(outputs)[0] ** 2).mean()


def assert_equal(expected: list[Tensor], found: list[Tensor]) -> None:
    assert len(expected) == len(found) > 0
    for a, b in zip(expected, found, strict=True):
        assert b.device.type == "hpu"
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        assert torch.equal(a.detach(), b.detach().cpu())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_training", [False, True], ids=["eval", "train"])
def test_forward_and_backward_equal_the_cpus(name, is_training):
    case = make(name)
    host = case.module.train(is_training)
    device = copy.deepcopy(host).to("hpu")
    expected = host(**case.inputs)
    found = device(**to_hpu(case.inputs))
    assert type(found) is type(expected)
    assert_equal(tensors_in(expected), tensors_in(found))
    loss_of(expected).backward()
    loss_of(found).backward()
    parameters = dict(device.named_parameters())
    assert {p.device.type for p in parameters.values()} == {"hpu"}
    with_grad = [(n, p.grad) for n, p in host.named_parameters() if p.grad is not None]
    assert_equal([g for _, g in with_grad], [parameters[n].grad for n, _ in with_grad])
    assert len(with_grad) == sum(p.grad is not None for p in parameters.values())


FAMILIES = ["bert-sdpa", "t5-eager", "llama-sdpa", "vit-sdpa", "whisper-eager", "clip-sdpa"]


@pytest.mark.parametrize("name", [*FAMILIES, "unet2d_condition", "flux", "autoencoder_kl"])
def test_steps_of_adamw_equal_the_cpus(name):
    case = make(name)
    host = case.module.train()
    device = copy.deepcopy(host).to("hpu")
    runs = []
    for module, inputs in ((host, case.inputs), (device, to_hpu(case.inputs))):
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.1)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = loss_of(module(**inputs))
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        states = [s for s in optimizer.state.values() if s]
        runs.append((losses, list(module.state_dict().values()), states))
    (losses, weights, states), (found_losses, found_weights, found_states) = runs
    assert losses == found_losses
    assert losses[-1] != losses[0]
    assert_equal(weights, found_weights)
    for key in ("exp_avg", "exp_avg_sq"):
        assert_equal([s[key] for s in states], [s[key] for s in found_states])


@pytest.mark.parametrize("make_model", [gpt2, llama])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_generation_gives_the_same_tokens(make_model, attention):
    pytest.importorskip("transformers")
    torch.manual_seed(3)
    case = make_model(attention)
    host = case.module.eval()
    device = copy.deepcopy(host).to("hpu")
    ids = case.inputs["input_ids"]
    mask = case.inputs["attention_mask"].flip(1)  # generation wants the padding on the left
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = host.generate(input_ids=ids, attention_mask=mask, **options)
    found = device.generate(input_ids=ids.to("hpu"), attention_mask=mask.to("hpu"), **options)
    assert expected.shape[1] > ids.shape[1]
    assert found.device.type == "hpu"
    assert found.tolist() == expected.tolist()


def test_sampling_with_the_same_seed_gives_the_same_tokens():
    pytest.importorskip("transformers")
    torch.manual_seed(3)
    case = gpt2("sdpa")
    host = case.module.eval()
    device = copy.deepcopy(host).to("hpu")
    ids = case.inputs["input_ids"]
    options = {"max_new_tokens": 6, "do_sample": True, "top_k": 10, "pad_token_id": 0}
    torch.manual_seed(5)
    expected = host.generate(input_ids=ids, **options)
    torch.manual_seed(5)
    found = device.generate(input_ids=ids.to("hpu"), **options)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["bert-sdpa", "t5-sdpa", "unet2d"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_forwards_without_gradients_equal_the_cpus(name, context):
    case = make(name)
    host = case.module.eval()
    device = copy.deepcopy(host).to("hpu")
    with context():
        expected, found = host(**case.inputs), device(**to_hpu(case.inputs))
    assert_equal(tensors_in(expected), tensors_in(found))
