"""The device draws from a generator of its own, which behaves as the CPU's does."""

from __future__ import annotations

import pytest
import torch
from habana_frameworks.torch.hpu import HPUGraph, graph
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_gaudi import emulator
from lightning_gaudi.emulator import rng

DRAWS = {
    "randn": lambda device: torch.randn(5, device=device),
    "rand": lambda device: torch.rand(5, device=device),
    "randint": lambda device: torch.randint(0, 100, (5,), device=device),
    "randperm": lambda device: torch.randperm(7, device=device),
    "normal_": lambda device: torch.empty(5, device=device).normal_(),
    "uniform_": lambda device: torch.empty(5, device=device).uniform_(-1, 1),
    "exponential_": lambda device: torch.empty(5, device=device).exponential_(),
    "random_": lambda device: torch.empty(5, device=device).random_(),
    "bernoulli": lambda device: torch.full((5,), 0.5, device=device).bernoulli(),
    "rand_like": lambda device: torch.rand_like(torch.empty(5, device=device)),
    "randn_like": lambda device: torch.randn_like(torch.empty(5, device=device)),
    "randint_like": lambda device: torch.randint_like(torch.empty(5, device=device), 9),
    "normal": lambda device: torch.normal(torch.zeros(5, device=device), 2.0),
    "poisson": lambda device: torch.poisson(torch.full((5,), 3.0, device=device)),
    "multinomial": lambda device: torch.multinomial(torch.ones(6, device=device), 4),
    "dropout": lambda device: nn.functional.dropout(torch.ones(9, device=device)),
    "alpha_dropout": lambda device: nn.functional.alpha_dropout(
        torch.ones(9, device=device), training=True
    ),
    "gumbel": lambda device: nn.functional.gumbel_softmax(torch.ones(2, 5, device=device)),
    "attention": lambda device: nn.functional.scaled_dot_product_attention(
        *[torch.ones(1, 1, 4, 4, device=device)] * 3, dropout_p=0.5
    ),
    "initialise": lambda device: nn.Linear(3, 2, device=device).weight.detach(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_after_the_same_seed_the_device_draws_what_the_host_draws(name):
    for inference in (False, True):
        with torch.inference_mode(inference):
            torch.manual_seed(4)
            on_host = [DRAWS[name]("cpu") for _ in range(2)]
            torch.manual_seed(4)
            host_state = torch.get_rng_state()
            on_device = [DRAWS[name]("hpu") for _ in range(2)]
        for drawn, expected in zip(on_device, on_host, strict=True):
            assert drawn.device.type == "hpu"
            assert torch.equal(drawn.cpu(), expected)
        # The host's own numbers did not move, and the device's did.
        assert torch.equal(torch.get_rng_state(), host_state)
        assert not torch.equal(torch.hpu.get_rng_state(), host_state)


# These cannot be given a generator.
NAMELESS = {"attention", "rand_like", "randn_like", "randint_like"}


@pytest.mark.parametrize("name", sorted(DRAWS.keys() - NAMELESS))
def test_drawing_leaves_the_hosts_generator_alone(name, monkeypatch):
    """Even for a moment: another thread may draw from it."""

    def refuse() -> None:
        raise AssertionError("the host's generator was given the device's state")

    monkeypatch.setattr(rng, "drawing", refuse)
    assert DRAWS[name]("hpu").device.type == "hpu"


def test_the_hosts_numbers_do_not_move_the_devices():
    torch.manual_seed(0)
    expected = torch.randn(3, device="hpu").cpu()
    torch.manual_seed(0)
    torch.randn(100)
    assert torch.equal(torch.randn(3, device="hpu").cpu(), expected)


def test_an_exception_in_an_op_puts_the_hosts_generator_back():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        torch.empty(3, device="hpu").uniform_(2, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_given_generator_is_the_one_that_moves():
    torch.manual_seed(0)
    device_state, host_state = torch.hpu.get_rng_state(), torch.get_rng_state()
    for generator in (torch.Generator(device="hpu"), torch.Generator()):
        drawn = torch.empty(4, device="hpu").normal_(generator=generator.manual_seed(3))
        expected = torch.empty(4).normal_(generator=torch.Generator().manual_seed(3))
        assert torch.equal(drawn.cpu(), expected)
        assert not torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state())
    assert torch.equal(torch.hpu.get_rng_state(), device_state)
    assert torch.equal(torch.get_rng_state(), host_state)


def test_seeds():
    torch.manual_seed(11)
    assert torch.hpu.initial_seed() == torch.initial_seed() == 11
    assert torch.equal(torch.hpu.get_rng_state(), torch.get_rng_state())
    assert torch.hpu.manual_seed(12) is rng.default_generator
    assert (torch.hpu.initial_seed(), torch.initial_seed()) == (12, 11)
    torch.hpu.manual_seed_all(13)
    assert torch.hpu.initial_seed() == 13
    drawn = torch.hpu.seed()
    assert torch.hpu.initial_seed() == drawn != 13
    torch.hpu.seed_all()
    assert torch.hpu.initial_seed() != drawn
    torch.seed()
    assert torch.hpu.initial_seed() == torch.initial_seed()


def test_states_are_cpu_bytes_and_can_be_put_back():
    state = torch.hpu.get_rng_state()
    assert (state.device.type, state.dtype) == ("cpu", torch.uint8)
    first = torch.randn(3, device="hpu").cpu()
    torch.hpu.set_rng_state(state, 0)
    assert torch.equal(torch.randn(3, device="hpu").cpu(), first)
    torch.hpu.set_rng_state_all([state])
    assert torch.equal(torch.hpu.get_rng_state_all()[0], state)


def test_states_of_devices_that_do_not_exist():
    state = torch.hpu.get_rng_state("hpu:0")
    for device in (1, "hpu:1", torch.device("hpu", 2)):
        with pytest.raises(RuntimeError, match="hpu get_rng_state: a process has one device"):
            torch.hpu.get_rng_state(device)
        with pytest.raises(RuntimeError, match="hpu set_rng_state: a process has one device"):
            torch.hpu.set_rng_state(state, device)
    with pytest.raises(RuntimeError, match="takes one state, for a process has one HPU, but got 2"):
        torch.hpu.set_rng_state_all([state, state])


def test_fork_rng_puts_both_back():
    torch.manual_seed(0)
    states = torch.get_rng_state(), torch.hpu.get_rng_state()
    with torch.random.fork_rng(device_type="hpu"):
        torch.randn(3)
        torch.randn(3, device="hpu")
        torch.manual_seed(9)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(torch.hpu.get_rng_state(), states[1])


def test_gradient_checkpointing_repeats_the_dropout():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 6)).to("hpu")
    x = torch.randn(4, 6, device="hpu", requires_grad=True)
    gradients = []
    for use in (False, True):
        torch.manual_seed(1)
        run = (lambda t: checkpoint(module, t, use_reentrant=False)) if use else module
        x.grad = None
        run(x).square().sum().backward()
        gradients.append(x.grad.cpu())
    assert torch.equal(*gradients)
    assert gradients[0].abs().sum() > 0


def test_a_replay_draws_anew_and_reproducibly():
    x = torch.ones(200, device="hpu")
    captured = HPUGraph()
    with torch.no_grad(), graph(captured):
        out = nn.functional.dropout(x)
        noise = torch.randn_like(x)
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        host_state = torch.get_rng_state()
        captured.replay()
        draws.append((out.cpu(), noise.cpu()))
        captured.replay()
        assert not torch.equal(out.cpu(), draws[-1][0])
        assert torch.equal(torch.get_rng_state(), host_state)
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not torch.equal(draws[0][1], draws[2][1])
    torch.manual_seed(3)
    assert torch.equal(draws[0][0], nn.functional.dropout(x).cpu())


def test_random_ops_compile_nothing_after_the_first_time():
    x = torch.ones(8).to("hpu")
    for step in range(4):
        with emulator.record() as events:
            nn.functional.dropout(x).add_(torch.randn_like(x)).cpu()
        assert ("compile" in [event.kind for event in events]) == (step == 0)
