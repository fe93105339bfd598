"""Any sequence of training calls gives the results and gradients of op by op, to the last bit."""

from __future__ import annotations

import random

import pytest
import torch
from graphs.training_steps import DROPPED, MLP, TwoHeads, graphed, pair, rows

MODULES = (MLP(), DROPPED, TwoHeads())
KINDS = (
    *["backward"] * 9,
    *["two calls", "input gradient", "no backward", "no gradient"] * 3,
    "kept",
    *["switch mode", "freeze", "load", "replace", "zero", "step"],
)


def script_of(rng):
    """Kinds with a batch size, a seed, and a number that decides the rest."""
    return [
        (rng.choice(KINDS), rng.randint(2, 3), rng.randint(0, 9), rng.random())
        for _ in range(rng.randint(20, 50))
    ]


def chosen(output, number):
    """One output of several, or all of them."""
    if not isinstance(output, dict):
        return output
    if number < 0.6:
        return output["first" if number < 0.4 else "second"]
    return torch.cat([output["first"], output["second"]], 1)


def run(module, call, script):
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05)
    found, kept = [], []
    for kind, size, seed, number in script:
        x = rows(size, seed=seed)
        parameters = list(module.parameters())
        with torch.autocast("hpu", dtype=torch.bfloat16, enabled=number > 0.9):
            if kind == "backward":
                out = chosen(call(x), number)
                out.float().square().mean().backward()
                found.append(out.detach())
            elif kind == "two calls":
                out = chosen(call(x), number) * chosen(call(rows(size, seed=seed + 1)), number)
                out.float().sum().backward()
            elif kind == "input gradient":
                x.requires_grad_()
                chosen(call(x * 1), number).float().sum().backward()
                found.append(x.grad)
            elif kind == "no backward":
                call(x)
            elif kind == "no gradient":
                with torch.no_grad():
                    found.append(chosen(call(x), number))
            elif kind == "kept":
                kept.append(chosen(call(x), number))
            elif kind == "switch mode":
                module.train(not module.training)
            elif kind == "freeze":
                weight = parameters[1 + seed % (len(parameters) - 1)]
                weight.requires_grad_(not weight.requires_grad)
            elif kind == "load":
                module.load_state_dict({k: v * 0.9 for k, v in module.state_dict().items()})
            elif kind == "replace":
                parameters[0].data = parameters[0].detach().clone() + 0.1
            elif kind == "zero":
                optimizer.zero_grad(set_to_none=number < 0.5)
            else:
                optimizer.step()
        found += [torch.zeros(0) if p.grad is None else p.grad.clone() for p in parameters]
    found += [out.detach() for out in kept] + list(module.state_dict().values())
    return [tensor.cpu() for tensor in found]


@pytest.mark.filterwarnings("ignore:.*trains op by op")
@pytest.mark.filterwarnings("ignore:.*has been called with more than max_graphs")
@pytest.mark.filterwarnings("ignore:.*was padded to")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_any_sequence_equals_op_by_op(seed):
    replays = 0
    for number in range(10):
        rng = random.Random(100 * seed + number)
        plain, other = pair(rng.choice(MODULES))
        call = graphed(other, max_graphs=rng.choice([1, 2, 16]))
        script = script_of(rng)
        expected, found = run(plain, plain, script), run(other, call, script)
        assert len(found) == len(expected)
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
        replays += call.stats.replays
    assert replays > 40
