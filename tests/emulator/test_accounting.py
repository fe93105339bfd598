"""What a lazy card would compile: one recipe for each graph between two flushes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import habana_frameworks.torch.core as htcore
import pytest
import torch
from habana_frameworks.torch.hpu.metrics import metric_global
from torch import nn

from lightning_gaudi import emulator

_next_size = 1000


@pytest.fixture
def size() -> int:
    """A length that no recipe of an earlier test has."""
    global _next_size
    _next_size += 1
    return _next_size


class Delta:
    """Compilations and hits since it was made."""

    def __init__(self) -> None:
        htcore.mark_step()
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[int, int, int]:
        compilation = dict(metric_global("graph_compilation").stats())
        cache = dict(metric_global("recipe_cache").stats())
        return compilation["TotalNumber"], cache["TotalMiss"], cache["TotalHit"]

    def take(self) -> tuple[int, int]:
        """(compilations, hits); flushes first."""
        htcore.mark_step()
        now = self._now()
        compilations, misses, hits = (b - a for a, b in zip(self._start, now, strict=True))
        assert compilations == misses
        self._start = now
        return compilations, hits


COMPILED, HIT, NOTHING = (1, 0), (0, 1), (0, 0)


def test_the_oracle_of_the_bridges_own_tests(size):
    delta = Delta()
    for expected in (COMPILED, HIT, HIT):
        device = torch.randn(size).to("hpu")
        result = (device * 2 + 1).relu().sum()
        assert delta._now() == delta._start  # nothing happens before somebody wants the value
        result.cpu()
        assert delta.take() == expected


def test_a_new_shape_dtype_or_layout_is_a_new_recipe(size):
    delta = Delta()

    def run(tensor: torch.Tensor) -> tuple[int, int]:
        (tensor + tensor).relu()
        return delta.take()

    base = torch.ones(size, 2).to("hpu")
    assert run(base) == COMPILED
    assert run(base) == HIT
    assert run(torch.zeros(size, 2).to("hpu")) == HIT
    assert run(torch.ones(size, 3).to("hpu")) == COMPILED
    assert run(torch.ones(size, 2, dtype=torch.float64).to("hpu")) == COMPILED
    assert run(torch.ones(2, size).to("hpu").t()) == COMPILED
    assert run(torch.ones(2, size).to("hpu").t()) == HIT
    assert run(base * 3) == COMPILED  # one op more
    assert run(base) == HIT


def test_how_ops_connect_matters(size):
    delta = Delta()
    a, b = (torch.ones(size).to("hpu") for _ in range(2))
    a - b
    assert delta.take() == COMPILED
    a - b
    assert delta.take() == HIT
    b - a  # the same graph over other tensors
    assert delta.take() == HIT
    a - a
    assert delta.take() == COMPILED
    c = a + b
    c - a
    assert delta.take() == COMPILED
    c = a + b
    c - b
    assert delta.take() == COMPILED
    c = a + b
    a - c
    assert delta.take() == COMPILED
    c = b + a
    c - b
    assert delta.take() == HIT


VALUES_THAT_DO_NOT_MATTER: dict[str, Callable[[torch.Tensor, float], object]] = {
    "add": lambda t, v: t + v,
    "add_reversed": lambda t, v: v + t,
    "sub": lambda t, v: t - v,
    "mul": lambda t, v: t * v,
    "div": lambda t, v: t / v,
    "add_": lambda t, v: t.add_(v),
    "mul_": lambda t, v: t.mul_(v),
    "gt": lambda t, v: t > v,
    "eq": lambda t, v: t == v,
    "addcmul": lambda t, v: torch.addcmul(t, t, t, value=v),
    "addcdiv": lambda t, v: torch.addcdiv(t, t, t, value=v),
    "addcmul_": lambda t, v: t.addcmul_(t, t, value=v),
    "add_alpha": lambda t, v: torch.add(t, t, alpha=v),
    "add_alpha_in_place": lambda t, v: t.add_(t, alpha=v),
    "sub_alpha": lambda t, v: torch.sub(t, t, alpha=v),
    "lerp": lambda t, v: torch.lerp(t, t, v),
    "pow": lambda t, v: t**v,
}


@pytest.mark.parametrize("name", VALUES_THAT_DO_NOT_MATTER)
def test_a_scalar_operand_is_no_part_of_the_recipe(name, size):
    run = VALUES_THAT_DO_NOT_MATTER[name]
    tensor = torch.ones(size).to("hpu")
    delta = Delta()
    run(tensor, 1.5)
    assert delta.take() == COMPILED
    run(tensor, 2.5)
    assert delta.take() == HIT
    run(tensor, 3.5)
    assert delta.take() == HIT


@pytest.mark.parametrize("name", ["addcmul", "addcdiv", "addcmul_", "add_alpha_in_place"])
def test_the_value_one_is_another_recipe(name, size):
    run = VALUES_THAT_DO_NOT_MATTER[name]
    tensor = torch.ones(size).to("hpu")
    delta = Delta()
    run(tensor, 2.0)
    assert delta.take() == COMPILED
    run(tensor, 1.0)
    assert delta.take() == COMPILED
    run(tensor, 1.0)
    assert delta.take() == HIT


VALUES_THAT_MATTER: dict[str, Callable[[torch.Tensor, int], object]] = {
    "sum_dim": lambda t, v: t.sum(v),
    "slice": lambda t, v: t[v:] * 1,
    "dropout": lambda t, v: nn.functional.dropout(t, 0.25 * (v + 1)),
    "softmax_dim": lambda t, v: t.softmax(v),
    "roll": lambda t, v: torch.roll(t, v + 1),
    "leaky_relu": lambda t, v: nn.functional.leaky_relu(t, 0.1 * (v + 1)),
    "clamp": lambda t, v: t.clamp(min=0.1 * (v + 1)),
    "layer_norm_eps": lambda t, v: nn.functional.layer_norm(t, (2,), eps=1e-5 * (v + 1)),
    "fill": lambda t, v: t.clone().fill_(0.5 * (v + 1)),
    "arange": lambda t, v: torch.arange(v, v + 7.0, device="hpu") + 1,
    "keepdim": lambda t, v: t.sum(0, keepdim=bool(v)),
    "view": lambda t, v: t.view(*((t.shape[0], 2) if v else (2, t.shape[0]))) * 1,
}


@pytest.mark.parametrize("name", VALUES_THAT_MATTER)
def test_a_baked_constant_is_part_of_the_recipe(name, size):
    run = VALUES_THAT_MATTER[name]
    tensor = torch.ones(size, 2).to("hpu")
    delta = Delta()
    run(tensor, 0)
    assert delta.take() == COMPILED
    run(tensor, 1)
    assert delta.take() == COMPILED
    run(tensor, 0)
    assert delta.take() == HIT


def test_views_alone_compile_nothing(size):
    tensor = torch.ones(size, 2).to("hpu")
    delta = Delta()
    tensor.view(-1).detach()[3:].t()
    torch.empty_like(tensor)
    assert delta.take() == NOTHING


def test_an_allocation_does_not_cut_the_graph(size):
    """Asking for memory like a pending result leaves that result inside the graph."""
    tensor = torch.ones(size).to("hpu")
    delta = Delta()
    result = tensor + tensor
    torch.empty_like(result)
    result.relu()
    assert delta.take() == COMPILED
    result = tensor + tensor
    result.relu()
    assert delta.take() == HIT


FLUSHES: dict[str, tuple[str, Callable[[torch.Tensor], object]]] = {
    "item": ("_local_scalar_dense", lambda t: t[0].item()),
    "bool": ("_local_scalar_dense", lambda t: bool(t[0] > 0)),
    "cpu": ("d2h", lambda t: t.cpu()),
    "copy_to_the_host": ("d2h", lambda t: torch.empty(t.shape).copy_(t)),
    "tolist": ("d2h", lambda t: t.tolist()),
    "copy_onto": ("h2d", lambda t: t.copy_(torch.ones(t.shape))),
    "nonzero": ("nonzero", lambda t: t.nonzero()),
    "mask": ("index.Tensor", lambda t: t[t > 0]),
    "unique": ("_unique2", lambda t: t.unique()),
    "synchronize": ("synchronize", lambda t: torch.hpu.synchronize()),
    "accelerator_synchronize": ("synchronize", lambda t: torch.accelerator.synchronize()),
    "mark_step": ("mark_step", lambda t: htcore.mark_step()),
    "equal": ("equal", lambda t: torch.equal(t, t)),
    "masked_values": (
        "index_put_",
        lambda t: t.__setitem__(t > 0, torch.ones(t.shape).to("hpu")),
    ),
}


@pytest.mark.parametrize("name", FLUSHES)
def test_what_flushes(name, size):
    cause, force = FLUSHES[name]
    pending = torch.ones(size).to("hpu") * 2
    with emulator.record() as events:
        force(pending)
    assert cause in [event.cause for event in events if event.kind == "flush"]


def test_what_does_not_flush(size):
    done = torch.ones(size).to("hpu")
    torch.ones(size).to("hpu")
    htcore.mark_step()
    with emulator.record() as events:
        pending = done * 2
        done.cpu()  # not what is pending
        torch.ones(size).to("hpu")
        pending[pending > 0] = 1.0  # a masked fill
        pending[[0, 1]]
        pending.shape, pending.dtype, pending.device, pending.view(-1)
    assert [event for event in events if event.kind == "flush"] == []
    with emulator.record() as events:
        htcore.mark_step()
        htcore.mark_step()
    assert [event.kind for event in events].count("flush") == 1


def test_a_view_of_a_pending_tensor_is_pending(size):
    pending = torch.ones(size).to("hpu") * 2
    with emulator.record() as events:
        pending[1:].cpu()
    assert "flush" in [event.kind for event in events]
    host = torch.ones(size).to("hpu")
    htcore.mark_step()
    host.view(-1)[0].add_(1)
    with emulator.record() as events:
        assert host.cpu()[0] == 2
    assert "flush" in [event.kind for event in events]


def test_an_op_without_a_kernel_is_a_fallback(size):
    before = dict(dict(metric_global("cpu_fallback").stats())["FallbackOps"])
    tensor = torch.eye(3).to("hpu") * 2
    with emulator.record() as events:
        determinant = torch.linalg.eigvals(tensor)
    assert determinant.device.type == "hpu"
    kinds = [(event.kind, event.cause) for event in events]
    assert ("flush", "cpu_fallback") in kinds
    assert ("cpu_fallback", "linalg_eig") in kinds or ("cpu_fallback", "linalg_eigvals") in kinds
    after = dict(metric_global("cpu_fallback").stats())
    assert sum(after["FallbackOps"].values()) == after["TotalNumber"] > sum(before.values())


def test_fallbacks_can_be_forbidden(monkeypatch):
    tensor = torch.eye(3).to("hpu")
    monkeypatch.setenv("PT_HPU_PLACE_ON_CPU", "none")
    with pytest.raises(RuntimeError, match=r"aten::linalg_eig\S* has no HPU kernel and PT_HPU_PLA"):
        torch.linalg.eigvals(tensor)
    monkeypatch.undo()


def test_metrics_have_the_sdks_form(size):
    delta = Delta()
    for _ in range(3):
        torch.ones(size).to("hpu") * 2 + 3
        htcore.mark_step()
    assert delta.take() == (1, 2)
    compilation = metric_global("graph_compilation").stats()
    assert [name for name, _ in compilation] == ["TotalNumber", "TotalTime", "AvgTime"]
    cache = dict(metric_global("recipe_cache").stats())
    assert list(cache) == ["TotalHit", "RecipeHit", "TotalMiss", "RecipeMiss"]
    assert sum(cache["RecipeHit"].values()) == cache["TotalHit"]
    assert sum(cache["RecipeMiss"].values()) == cache["TotalMiss"]
    assert metric_global("no_such_metric") is None


def test_a_training_loop_compiles_once_it_is_warm(size):
    module = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 1)).to("hpu")
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    delta = Delta()
    counts = []
    for step in range(6):
        batch = torch.randn(size % 100 + 2, 8).to("hpu")
        optimizer.param_groups[0]["lr"] = 1e-3 / (step + 1)
        optimizer.zero_grad()
        module(batch).mean().backward()
        htcore.mark_step()
        optimizer.step()
        counts.append(delta.take()[0])
    assert counts[0] >= 2
    assert counts[3:] == [0, 0, 0]


@contextmanager
def _recorded_compilations() -> Iterator[list[str]]:
    details: list[str] = []
    with emulator.record() as events:
        yield details
    details.extend(event.detail for event in events if event.kind == "compile")


def test_a_compilation_says_which_shapes_it_was_for(size):
    with _recorded_compilations() as details:
        tensor = torch.ones(size, 3).to("hpu")
        tensor @ torch.ones(3, 2).to("hpu")
        htcore.mark_step()
    assert details == [f"1 ops; inputs [{size}, 3]:torch.float32, [3, 2]:torch.float32"]


@pytest.mark.slow
def test_a_collective_flushes_what_is_pending(run_python):
    result = run_python(
        """
        import os
        import torch
        import torch.distributed as dist
        from lightning_gaudi import emulator
        from lightning_gaudi.runtime import distributed, loading

        loading.load("lazy")
        distributed.load_backend()
        store = f"file://{os.getcwd()}/store"
        dist.init_process_group("hccl", init_method=store, rank=0, world_size=1)
        x = torch.ones(3, device="hpu") * 2
        with emulator.record() as events:
            dist.all_reduce(x)
            gathered = [torch.empty_like(x)]
            dist.all_gather(gathered, x)
            dist.barrier()
        print([(e.kind, e.cause) for e in events][:2], x.tolist(), gathered[0].tolist())
        print(type(gathered[0]).__name__, x.device)
        dist.destroy_process_group()
        """
    )
    assert result.stdout.splitlines() == [
        "[('flush', 'collective'), ('compile', 'collective')] [2.0, 2.0, 2.0] [2.0, 2.0, 2.0]",
        "HPUTensor hpu:0",
    ]


@pytest.mark.slow
def test_the_bridges_own_limit_on_a_graph(run_python):
    code = """
        import torch
        import habana_frameworks.torch.core as htcore
        from lightning_gaudi import emulator
        x = torch.ones(3).to("hpu")
        with emulator.record() as events:
            for _ in range(8):
                x = x * 2
            print([event.cause for event in events if event.kind == "flush"], x.tolist())
    """
    output = run_python(code, PT_HPU_MAX_COMPOUND_OP_SIZE="3").stdout
    limit, values = "max_compound_op_size", [256.0] * 3
    assert output == f"{[limit, limit]} {values}\n"
    assert run_python(code, PT_HPU_MAX_COMPOUND_OP_SIZE=None).stdout == f"[] {values}\n"


def test_a_wrong_limit_on_a_graph(run_python):
    result = run_python(
        "import torch; torch.ones(1).to('hpu')", check=False, PT_HPU_MAX_COMPOUND_OP_SIZE="many"
    )
    assert "PT_HPU_MAX_COMPOUND_OP_SIZE must be a whole number of ops" in result.stderr
    assert "it is 'many'" in result.stderr
