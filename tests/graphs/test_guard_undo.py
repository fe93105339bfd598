"""What the guard notes of a forward's writes, and that a refusal leaves nothing half-done."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gaudi import emulator
from lightning_gaudi.errors import HostReadError
from lightning_gaudi.graphs import GraphedForward
from lightning_gaudi.graphs.guard import CaptureGuard

X = torch.arange(6.0).reshape(2, 3)


class DrawsAndWrites(nn.Module):
    """Changes all that a forward can change, and then reads the host."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        y = self.norm(x) + torch.rand_like(x)
        return y * random.random() * np.random.rand() * y.sum().item()


def states_of(module):
    return (
        {name: value.cpu().clone() for name, value in module.state_dict().items()},
        torch.hpu.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )


def assert_same_states(one, other):
    assert all(torch.equal(one[0][name], other[0][name]) for name in other[0])
    assert torch.equal(one[1], other[1])
    assert one[2:] == other[2:]


def test_a_refused_forward_leaves_nothing_half_done():
    module = DrawsAndWrites().to("hpu").requires_grad_(False)
    # Nothing can be copied into it, and nothing was written to it.
    module.register_buffer("wide", torch.zeros(1, device="hpu").expand(3))
    before = states_of(module)
    with torch.no_grad(), pytest.raises(HostReadError):
        GraphedForward(module)(X.to("hpu"))
    assert_same_states(states_of(module), before)


def test_on_failure_eager_is_the_forward_run_once():
    torch.manual_seed(3)
    module = DrawsAndWrites().to("hpu").requires_grad_(False)
    twin = copy.deepcopy(module)
    device_state = torch.hpu.get_rng_state()
    host_states = random.getstate(), np.random.get_state()
    with torch.no_grad(), pytest.warns(UserWarning, match="op by op from now on"):
        ours = GraphedForward(module, on_failure="eager")(X.to("hpu"))
    after = states_of(module)
    torch.hpu.set_rng_state(device_state)
    random.setstate(host_states[0])
    np.random.set_state(host_states[1])
    assert torch.equal(ours.cpu(), twin(X.to("hpu")).cpu())
    assert_same_states(states_of(twin), after)
    assert after[0]["calls"].item() == 1


def test_the_users_own_error_leaves_what_op_by_op_would():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            raise KeyError("mine")

    module = Counts().to("hpu")
    with torch.no_grad(), pytest.raises(KeyError, match="mine"):
        GraphedForward(module)(X.to("hpu"))
    assert module.calls.item() == 1


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference"])
@pytest.mark.parametrize("error", [KeyError("mine"), RuntimeError("mine")], ids=repr)
def test_the_users_own_error_leaves_arguments_as_op_by_op_would(error, inference):
    def writes(x):
        x += 1
        raise error

    with torch.inference_mode(inference), torch.no_grad():
        x = X.to("hpu")
        with pytest.raises(type(error), match="mine"):
            GraphedForward(writes)(x)
        assert torch.equal(x.cpu(), X + 1)


def test_card_rule_6_the_guard_knows_what_a_forward_writes():
    module = nn.BatchNorm1d(3).to("hpu").requires_grad_(False)
    module.register_buffer("other", torch.zeros(3, device="hpu"))

    def writes(x, cache):
        cache.add_(x)
        # Not the module: it counts its batches, and that write is plain to see.
        statistics = module.running_mean, module.running_var
        return nn.functional.batch_norm(x, *statistics, training=module.training)

    x, cache = X.to("hpu"), torch.zeros(2, 3, device="hpu")
    for training in (True, False):
        module.train(training)
        weights = [*module.parameters(), *module.buffers()]
        guard = CaptureGuard("it", [x, cache], weights, [])
        with torch.no_grad(), guard:
            writes(x, cache)
        assert guard.written == {1}
        assert guard.has_written_weights == training


def test_a_batch_norm_module_is_left_whole_by_a_refusal():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval().to("hpu")
    state = {name: value.cpu().clone() for name, value in module.state_dict().items()}

    def forward(x):
        return module(x) * module(x).sum().item()

    with torch.no_grad(), pytest.raises(HostReadError):
        GraphedForward(forward, module=module)(X.to("hpu"))
    assert all(torch.equal(state[k], v.cpu()) for k, v in module.state_dict().items())
    with emulator.record() as events:
        module(X.to("hpu"))
    assert not [e for e in events if e.kind == "capture_begin"]
