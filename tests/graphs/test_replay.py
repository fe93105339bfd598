"""Replay equals running op by op, and never gives a silently wrong answer."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_gaudi import emulator
from lightning_gaudi.errors import CaptureError, ConfigurationError
from lightning_gaudi.graphs import GraphedForward


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 4)).to("hpu")


def batch(rows=3, seed=0):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed)).to("hpu")


def assert_same(one, other):
    assert one.dtype == other.dtype
    assert torch.equal(one.cpu(), other.cpu())


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_first_call_is_right_and_later_calls_replay():
    module = mlp().eval()
    graphed = GraphedForward(module.forward)
    with emulator.record() as events:
        for seed in range(4):
            assert_same(graphed(batch(seed=seed)), module(batch(seed=seed)))
    kinds = [e.kind for e in events if e.kind in ("capture_begin", "capture_end", "replay")]
    assert kinds == ["capture_begin", "capture_end", "replay", "replay", "replay"]
    assert (graphed.stats.captures, graphed.stats.replays) == (1, 3)
    assert graphed.stats.capture_seconds > 0


def test_never_wrong_1_outputs_survive_the_next_replay():
    module = mlp().eval()
    graphed = GraphedForward(module.forward)
    outputs = [graphed(batch(seed=seed)) for seed in range(3)]
    for seed, output in enumerate(outputs):
        assert_same(output, module(batch(seed=seed)))


def test_without_clones_the_next_replay_overwrites():
    graphed = GraphedForward(mlp().eval().forward, clone_outputs=False)
    first = graphed(batch(seed=0))
    second = graphed(batch(seed=1))
    assert torch.equal(first.cpu(), second.cpu())
    assert first.data_ptr() == second.data_ptr()


def test_never_wrong_2_the_callers_tensors_are_never_the_static_inputs():
    module = mlp().eval()
    graphed = GraphedForward(module.forward)
    first = batch(seed=0)
    before = first.cpu()
    graphed(first)
    graphed(batch(seed=1))
    assert torch.equal(first.cpu(), before)
    first.zero_()
    assert_same(graphed(batch(seed=2)), module(batch(seed=2)))


def test_never_wrong_3_values_of_arguments_make_graphs_of_their_own():
    def scaled(x, factor):
        return x * factor if factor != 1 else x + 1

    graphed = GraphedForward(scaled)
    for factor in (1, 1.0, True, -1, -2, 0.0, -0.0, 2, 1):
        assert_same(graphed(batch(), factor), scaled(batch(), factor))
    assert graphed.stats.captures == 8


def test_never_wrong_3_train_and_eval_are_two_graphs_also_of_a_submodule():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).to("hpu").eval()
    graphed = GraphedForward(module.forward)
    assert_same(graphed(batch()), module(batch()))
    module[1].train()
    torch.manual_seed(3)
    ours = graphed(batch())
    torch.manual_seed(3)
    assert_same(ours, module(batch()))
    assert (ours == 0).any()
    module[1].eval()
    assert_same(graphed(batch()), module(batch()))
    assert (graphed.stats.captures, graphed.stats.replays) == (2, 1)


def test_random_ops_draw_anew_at_each_replay():
    graphed = GraphedForward(lambda x: x + torch.rand_like(x))
    drawn = [graphed(torch.zeros(8, device="hpu")).cpu() for _ in range(3)]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


def test_never_wrong_4_weights_updated_in_place_are_seen():
    module = mlp().eval()
    graphed = GraphedForward(module.forward)
    graphed(batch())
    for parameter in module.parameters():
        parameter.mul_(1.5)
    assert_same(graphed(batch()), module(batch()))
    assert graphed.stats.captures == 1


def replace_data(module):
    module[0].weight.data = module[0].weight.data * 2


def load_assign(module):
    state = {k: v.clone() * 2 for k, v in module.state_dict().items()}
    module.load_state_dict(state, assign=True)


def new_parameter(module):
    module[0].weight = nn.Parameter(module[0].weight * 2)


def new_submodule(module):
    module[1] = nn.ReLU()


def move_away_and_back(module):
    module.cpu()
    module[0].weight.mul_(2)
    module.to("hpu")


def change_a_buffer(module):
    module.register_buffer("extra", torch.ones(1, device="hpu"))


@pytest.mark.parametrize(
    "change",
    [replace_data, load_assign, new_parameter, new_submodule, move_away_and_back, change_a_buffer],
    ids=lambda fn: fn.__name__,
)
def test_never_wrong_4_replaced_weights_drop_the_graphs(change):
    module = mlp().eval()
    graphed = GraphedForward(module.forward)
    graphed(batch(rows=2))
    graphed(batch(rows=3))
    change(module)
    assert_same(graphed(batch(rows=2)), module(batch(rows=2)))
    assert graphed.num_graphs == 1
    assert graphed.stats.captures == 3


def test_never_wrong_6_gradients_run_eagerly_and_are_right():
    module = mlp()
    graphed = GraphedForward(module.forward)
    with torch.enable_grad():
        graphed(batch()).sum().backward()
    ours = [p.grad.cpu() for p in module.parameters()]
    module.zero_grad()
    with torch.enable_grad():
        module(batch()).sum().backward()
    assert all(torch.equal(a, p.grad.cpu()) for a, p in zip(ours, module.parameters(), strict=True))
    assert graphed.stats.eager_calls == 1
    assert graphed.stats.captures == 0


def test_an_input_that_wants_a_gradient_runs_eagerly():
    graphed = GraphedForward(lambda x: x * 2)
    x = batch().requires_grad_()
    with torch.enable_grad():
        graphed(x).sum().backward()
    assert torch.equal(x.grad.cpu(), torch.full((3, 4), 2.0))
    assert graphed.stats.eager_calls == 1


def test_grad_mode_without_anything_that_wants_a_gradient_replays():
    graphed = GraphedForward(lambda x: x * 2)
    with torch.enable_grad():
        graphed(batch())
        result = graphed(batch(seed=1))
    assert not result.requires_grad
    assert graphed.stats.replays == 1


@dataclass
class Answer:
    scores: torch.Tensor
    count: int
    nothing: None = None


def test_never_wrong_7_results_come_back_as_in_eager():
    weight = nn.Parameter(torch.ones(4, device="hpu"))
    module = nn.Module()
    module.weight = weight

    def forward(x, y):
        doubled = x * 2
        return {
            "input": y,
            "weight": module.weight,
            "twice": (doubled, doubled),
            "nested": [Answer(doubled + 1, x.shape[0]), None, 3, "text"],
        }

    graphed = GraphedForward(forward, module=module)
    for seed in range(3):
        x, y = batch(seed=seed), batch(seed=seed + 10)
        ours, theirs = graphed(x, y), forward(x, y)
        assert ours["input"] is y
        assert ours["weight"] is weight
        assert ours["twice"][0] is ours["twice"][1]
        assert_same(ours["twice"][0], theirs["twice"][0])
        assert isinstance(ours["nested"][0], Answer)
        assert ours["nested"][0].count == 3
        assert_same(ours["nested"][0].scores, theirs["nested"][0].scores)
        assert ours["nested"][1:] == [None, 3, "text"]
    assert graphed.stats.replays == 2


def test_never_wrong_8_inference_mode_and_no_grad_share_a_graph_as_card_rule_5_asks():
    module = mlp().eval()
    graphed = GraphedForward(module.forward)
    with torch.inference_mode():
        made_inside = batch(seed=0)
        first = graphed(made_inside)
        assert first.is_inference()
        assert_same(first, module(made_inside))
    assert_same(graphed(batch(seed=1)), module(batch(seed=1)))
    with torch.inference_mode():
        x = batch(seed=2)
        assert_same(graphed(x), module(x))
    assert (graphed.stats.captures, graphed.stats.replays) == (1, 2)


def test_writes_to_inputs_reach_the_caller():
    def forward(x, cache):
        cache[:, 1] += x.sum()
        return cache * 2

    graphed = GraphedForward(forward)
    ours, theirs = torch.zeros(2, 3, device="hpu"), torch.zeros(2, 3, device="hpu")
    for seed in range(3):
        assert_same(graphed(batch(seed=seed), ours), forward(batch(seed=seed), theirs))
        assert torch.equal(ours.cpu(), theirs.cpu())
    assert graphed.stats.replays == 2


def test_card_rule_6_running_statistics_advance_once_a_call():
    def make():
        torch.manual_seed(2)
        return nn.BatchNorm1d(4).to("hpu").train()

    captured, plain = make(), make()
    graphed = GraphedForward(captured.forward)
    captured.requires_grad_(False)
    for seed in range(4):
        assert_same(graphed(batch(seed=seed)), plain(batch(seed=seed)))
        assert torch.equal(captured.running_mean.cpu(), plain.running_mean.cpu())
        assert captured.num_batches_tracked.item() == seed + 1
    assert graphed.stats.replays == 3


def test_never_wrong_3_autocast_is_part_of_the_key_and_sees_changed_weights():
    module = mlp().eval()
    graphed = GraphedForward(module.forward)
    for _ in range(2):
        with torch.autocast("hpu", dtype=torch.bfloat16):
            module(batch())  # fills the cache of cast weights
            ours = graphed(batch())
        with torch.autocast("hpu", dtype=torch.bfloat16):
            assert_same(ours, module(batch()))
        assert_same(graphed(batch()), module(batch()))
        module[0].weight.mul_(3)
    assert (graphed.stats.captures, graphed.stats.replays) == (2, 2)


class Boom(Exception):
    pass


def test_never_wrong_11_an_exception_ends_the_capture_and_arrives_unchanged():
    error = Boom("mine")
    fail = True

    def forward(x):
        y = x * 2
        if fail:
            raise error
        return y

    graphed = GraphedForward(forward)
    with pytest.raises(Boom) as caught:
        graphed(batch())
    assert caught.value is error
    assert caught.value.__cause__ is None
    fail = False
    assert_same(graphed(batch()), batch() * 2)
    assert (graphed.stats.captures, graphed.num_graphs) == (1, 1)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_on_submodules_run_and_forbid_replay(register):
    module = mlp().eval()
    seen: list[int] = []
    graphed = GraphedForward(module.forward)
    graphed(batch())
    handle = getattr(module[0], register)(lambda *args: seen.append(1))
    with pytest.warns(UserWarning, match="submodule Linear has a forward hook"):
        graphed(batch())
        graphed(batch())
    assert seen == [1, 1]
    handle.remove()
    assert_same(graphed(batch(seed=5)), module(batch(seed=5)))
    assert graphed.stats.eager_calls == 2
    assert graphed.stats.replays == 1


def test_card_rule_2_a_target_inside_a_target_runs_inline():
    inner_module, outer_module = mlp().eval(), mlp().eval()
    inner = GraphedForward(inner_module.forward)
    both = nn.ModuleList([inner_module, outer_module])
    outer = GraphedForward(lambda x: outer_module(inner(x)), module=both)
    for seed in range(2):
        assert_same(outer(batch(seed=seed)), outer_module(inner_module(batch(seed=seed))))
    assert inner.stats.calls == 0
    assert outer.stats.captures == 1


class Mutable:
    def __init__(self):
        self.scale = 2.0


def test_an_object_that_may_change_runs_eagerly():
    def forward(x, options):
        return x * options.scale

    graphed = GraphedForward(forward)
    options = Mutable()
    with pytest.warns(UserWarning, match="among its arguments is an object of type Mutable"):
        assert_same(graphed(batch(), options), batch() * 2)
        options.scale = 5.0
        assert_same(graphed(batch(), options), batch() * 5)
    assert graphed.stats.eager_calls == 2


def test_a_cpu_tensor_of_several_elements_runs_eagerly():
    def forward(x, scale):
        return x * scale.to("hpu")

    graphed = GraphedForward(forward)
    scale = torch.full((4,), 2.0)
    with pytest.warns(UserWarning, match=r"a tensor on cpu of shape \(4,\)"):
        assert_same(graphed(batch(), scale), batch() * 2)
        scale += 1
        assert_same(graphed(batch(), scale), batch() * 3)


def test_a_result_that_cannot_be_refreshed_is_an_error():
    with pytest.raises(RuntimeError, match="it returns an object of type Mutable"):
        GraphedForward(lambda x: Mutable())(batch())


def test_no_device_tensors_at_all():
    graphed = GraphedForward(lambda n: torch.arange(n, device="hpu") * 2)
    assert graphed(3).tolist() == [0, 2, 4]
    assert graphed(3).tolist() == [0, 2, 4]
    assert graphed.stats.replays == 1


def test_keeps_the_signature_of_what_it_stands_for():
    import inspect

    def forward(x, scale=2.0):
        """Scale."""
        return x * scale

    graphed = GraphedForward(forward)
    assert inspect.signature(graphed) == inspect.signature(forward)
    assert graphed.__doc__ == "Scale."


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4", None])
def test_max_graphs_must_be_a_count(value):
    with pytest.raises(ConfigurationError, match="max_graphs must be a whole number of 1 or more"):
        GraphedForward(lambda x: x, max_graphs=value)


def test_on_failure_must_be_known():
    with pytest.raises(ConfigurationError, match="'raise' or 'eager', but it is 'ignore'"):
        GraphedForward(lambda x: x, on_failure="ignore")  # type: ignore[arg-type]


def test_eager_mode_has_no_graphs(run_python):
    result = run_python(
        """
        import torch
        from lightning_gaudi.graphs import GraphedForward
        from lightning_gaudi.errors import CaptureError
        from lightning_gaudi.runtime import loading
        loading.load("eager")
        try:
            GraphedForward(lambda x: x * 2)(torch.ones(2, device="hpu"))
        except CaptureError as error:
            print(error)
        """,
        PT_HPU_LAZY_MODE="0",
    )
    assert (
        "HPU graphs exist in lazy mode only, and the Gaudi software runs in eager" in result.stdout
    )


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["call", "call", "call", "train", "eval", "update", "replace", "fail"]),
        st.integers(1, 3),  # rows
        st.sampled_from([torch.float32, torch.bfloat16]),
        st.sampled_from([1, True, 1.0, -1, -2, None]),
        st.sampled_from(["no_grad", "inference", "grad", "autocast"]),
    ),
    min_size=1,
    max_size=12,
)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x, factor=None, fail=False):
        if fail:
            raise Boom
        y = self.norm(self.linear(x.float()))
        return {"y": y if factor is None else y * factor, "x": x, "n": x.shape[0]}


@settings(max_examples=60, deadline=None)
@given(CALLS)
@pytest.mark.slow
def test_any_sequence_of_calls_equals_op_by_op(calls):
    torch.manual_seed(7)
    model = Model().to("hpu").eval()
    twin = Model().to("hpu").eval()
    twin.load_state_dict(model.state_dict())
    graphed = GraphedForward(model.forward, max_graphs=3, pad_batch=False)
    import contextlib
    import warnings

    modes = {
        "no_grad": torch.no_grad,
        "inference": torch.inference_mode,
        "grad": torch.enable_grad,
        "autocast": lambda: torch.autocast("hpu", dtype=torch.bfloat16),
    }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for number, (what, rows, dtype, factor, mode) in enumerate(calls):
            for module in (model, twin):
                if what == "train" and rows > 1:
                    module.norm.train()
                elif what == "eval":
                    module.norm.eval()
                elif what == "update":
                    module.linear.weight.mul_(0.5)
                elif what == "replace":
                    module.linear.weight.data = module.linear.weight.data + 1
            if what == "fail":
                with pytest.raises(Boom):
                    graphed(batch(rows), fail=True)
                continue
            if what != "call" or (rows == 1 and model.norm.training):
                continue
            x = batch(rows, seed=number).to(dtype)
            with contextlib.ExitStack() as stack:
                stack.enter_context(modes[mode]())
                ours = graphed(x, factor=factor)
            with modes[mode]():
                theirs = twin(x, factor=factor)
            assert_same(ours["y"].detach(), theirs["y"].detach())
            assert ours["x"] is x
            assert ours["n"] == rows
            for a, b in zip(model.buffers(), twin.buffers(), strict=True):
                assert torch.equal(a.cpu(), b.cpu())


def test_a_module_stands_for_its_forward():
    module = mlp().eval()
    graphed = GraphedForward(module)
    assert_same(graphed(batch()), module(batch()))
    module.load_state_dict({k: v * 2 for k, v in module.state_dict().items()}, assign=True)
    assert_same(graphed(batch()), module(batch()))
    with torch.enable_grad():
        assert graphed(batch()).requires_grad
    assert graphed.stats.captures == 2


def test_a_weight_that_moves_within_its_storage_is_noticed():
    flat = torch.arange(8.0, device="hpu")
    module = nn.Module()
    module.weight = nn.Parameter(flat[:4])
    graphed = GraphedForward(lambda x: x + module.weight, module=module)
    x = torch.zeros(4, device="hpu")
    assert graphed(x).tolist() == [0, 1, 2, 3]
    module.weight.data = flat[4:]
    assert graphed(x).tolist() == [4, 5, 6, 7]
    square = nn.Linear(3, 3, bias=False).to("hpu")
    graphed = GraphedForward(square)
    x = torch.randn(2, 3).to("hpu")
    graphed(x)
    square.weight.data = square.weight.data.t()
    assert_same(graphed(x), square(x))


def test_results_written_to_out_reach_the_caller():
    def forward(x, o):
        torch.add(x, 1, out=o)
        return o * 2

    graphed = GraphedForward(forward)
    for seed in range(2):
        ours = torch.zeros(3, 4, device="hpu")
        assert_same(graphed(batch(seed=seed), ours), (batch(seed=seed) + 1) * 2)
        assert_same(ours, batch(seed=seed) + 1)


def test_arguments_that_share_memory_and_are_written_to_are_refused():
    def forward(x, row):
        x.add_(1)
        return row * 1

    x = batch()
    with pytest.raises(CaptureError, match="some of its arguments share memory"):
        GraphedForward(forward)(x, x[:1])
    graphed = GraphedForward(forward, on_failure="eager")
    with pytest.warns(UserWarning, match="share memory"):
        result = graphed(x, x[:1])
    assert_same(result, batch()[:1] + 1)
    # Read only, shared memory does no harm.
    chunks = GraphedForward(lambda a, b: a * b)
    both = batch()
    for _ in range(2):
        assert_same(chunks(*both.chunk(2, dim=1)), both[:, :2] * both[:, 2:])
    assert chunks.stats.replays == 1


def test_a_forward_that_wrote_to_a_parameter_is_not_run_twice():
    module = nn.Module()
    module.calls = nn.Parameter(torch.zeros(1, device="hpu"), requires_grad=False)

    def forward(x):
        module.calls.add_(1)
        return x * x.sum().item()

    graphed = GraphedForward(forward, module=module, on_failure="eager")
    with pytest.raises(CaptureError, match="would write twice"):
        graphed(batch())
    assert module.calls.tolist() == [1.0]


def test_an_op_without_a_kernel_is_a_capture_error_with_the_users_line():
    graphed = GraphedForward(lambda x: torch.digamma(x) + 1)
    with pytest.raises(
        CaptureError, match=r"test_replay\.py:\d+: cpu fallback is not supp.*digamma"
    ):
        graphed(batch())
    graphed = GraphedForward(lambda x: torch.digamma(x) + 1, on_failure="eager")
    with pytest.warns(UserWarning, match="op by op from now on"):
        assert_same(graphed(batch()), torch.digamma(batch()) + 1)


def test_global_hooks_forbid_replay():
    module = mlp().eval()
    graphed = GraphedForward(module)
    graphed(batch())
    seen: list[int] = []
    handle = nn.modules.module.register_module_forward_hook(lambda *args: seen.append(1))
    try:
        with pytest.warns(UserWarning, match="has a forward hook"):
            graphed(batch())
    finally:
        handle.remove()
    assert len(seen) == 4


@pytest.mark.parametrize("after", [torch.digamma, lambda x: Mutable()], ids=["fallback", "result"])
def test_no_kind_of_refusal_runs_a_forward_twice_that_wrote_to_a_parameter(after):
    module = nn.Module()
    module.calls = nn.Parameter(torch.zeros(1, device="hpu"), requires_grad=False)

    def forward(x):
        module.calls.add_(1)
        return after(x)

    with pytest.raises(CaptureError, match="would write twice"):
        GraphedForward(forward, module=module, on_failure="eager")(batch())
    assert module.calls.tolist() == [1.0]
