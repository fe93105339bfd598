"""Partial batches: padded, sliced, checked; right to the last row, or not padded."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from lightning_gaudi import emulator
from lightning_gaudi.graphs import GraphedForward
from lightning_gaudi.graphs.padding import Fit, differs, pad


def rows(count, seed=0, width=4):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).to("hpu")


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)).to("hpu")


def counts(graphed):
    stats = graphed.stats
    return stats.captures, stats.padded_calls, stats.eager_calls


def assert_close(one, other):
    assert one.shape == other.shape
    assert differs(one, other) is None


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_never_wrong_9_a_partial_batch_is_padded_sliced_and_checked_once():
    module = mlp()
    runs = []

    def forward(x):
        runs.append(x.shape[0])
        return module(x)

    graphed = GraphedForward(forward, module=module)
    graphed(rows(8))
    assert runs == [8]
    for seed in range(3):
        x = rows(5, seed)
        result = graphed(x)
        assert_close(result, module(x))
        assert result.is_contiguous()
        assert result.untyped_storage().nbytes() == 5 * 3 * 4  # not all eight rows
    assert runs == [8, 5]  # op by op once, to compare
    assert counts(graphed) == (1, 3, 0)
    assert_close(graphed(rows(3)), module(rows(3)))  # another size is checked anew
    assert runs == [8, 5, 3]
    assert graphed.num_graphs == 1


def test_the_first_padded_answer_is_the_one_op_by_op():
    module = mlp()
    graphed = GraphedForward(module)
    graphed(rows(8))
    assert torch.equal(graphed(rows(5)).cpu(), module(rows(5)).cpu())


def test_card_rule_7_padding_repeats_the_last_row():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).to("hpu")
    fit = Fit(2, 5, (0,))
    assert pad(x, fit).tolist() == [[1, 2], [3, 4], [3, 4], [3, 4], [3, 4]]
    others = [[1, 2], [1, 2], [3, 4], [1, 2], [1, 2]]
    assert pad(x, Fit(2, 7, (0,)), unevenly=True).tolist() == [[1, 2], [3, 4], *others]
    assert pad(x, Fit(2, 4, (0,)), unevenly=True).tolist() == [[1, 2], [3, 4], [1, 2], [1, 2]]

    def attend(x, mask):  # a row that is all masked gives NaN
        scores = x.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1)

    seen = []
    graphed = GraphedForward(attend)
    mask = torch.ones(4, 4, dtype=torch.bool).to("hpu")
    graphed(rows(4), mask)
    for step in range(2):
        with emulator.record() as events:
            result = graphed(rows(3, step), mask[:3])
        seen.append(sum(event.kind == "replay" for event in events))
        assert_close(result, attend(rows(3, step), mask[:3]))
        assert not result.isnan().any()
    assert seen == [2, 1]  # at first with other padding too
    assert graphed.stats.padded_calls == 2


def test_the_smallest_captured_batch_that_fits_and_none_beyond():
    module = mlp()
    graphed = GraphedForward(module)
    for count in (4, 6, 9):  # each is larger than what there is
        graphed(rows(count))
    assert counts(graphed) == (3, 0, 0)
    used = {row: graphed.stats.graphs[place].replays for place, row in enumerate((4, 6, 9))}
    assert used == {4: 0, 6: 0, 9: 0}
    for seed in range(2):
        assert_close(graphed(rows(5, seed)), module(rows(5, seed)))
    assert [row.replays for row in graphed.stats.graphs] == [0, 3, 0]  # one was for the check
    assert counts(graphed) == (3, 2, 0)


def test_pad_batch_false_captures_each_size():
    module = mlp()
    graphed = GraphedForward(module, pad_batch=False)
    for count in (8, 5, 3):
        assert torch.equal(graphed(rows(count)).cpu(), module(rows(count)).cpu())
    assert counts(graphed) == (3, 0, 0)


@dataclass
class Answer:
    scores: torch.Tensor
    nothing: None = None


def test_nested_outputs_and_outputs_that_are_inputs():
    def forward(batch, scale):
        y = batch["x"] * scale
        return {"in": batch["x"], "twice": (y, y), "list": [Answer(y.sum(-1)), batch["ids"]]}

    graphed = GraphedForward(forward)
    scale = torch.tensor(3.0, device="hpu")
    table = torch.arange(4.0, device="hpu")

    def batch(count, seed=0):
        return {"x": rows(count, seed) * table, "ids": torch.arange(count).to("hpu")}

    graphed(batch(6), scale)
    for seed in range(2):
        given = batch(4, seed)
        result, expected = graphed(given, scale), forward(given, scale)
        assert differs(result, expected) is None
        assert result["in"] is given["x"]
        assert result["list"][1] is given["ids"]
        assert result["twice"][0] is result["twice"][1]
        assert isinstance(result["list"][0], Answer)
    assert counts(graphed) == (1, 2, 0)


def test_a_model_output_and_per_row_losses():
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )
    model = model.eval().to("hpu")
    criterion = nn.CrossEntropyLoss(reduction="none")

    def forward(input_ids, attention_mask, labels):
        output = model(input_ids=input_ids, attention_mask=attention_mask)
        return type(output)(loss=criterion(output.logits, labels), logits=output.logits)

    def batch(count, seed):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, 8, (count, 1), generator=generator)
        return {
            "input_ids": torch.randint(0, 50, (count, 7), generator=generator).to("hpu"),
            "attention_mask": (torch.arange(7) < lengths).long().to("hpu"),
            "labels": torch.randint(0, 2, (count,), generator=generator).to("hpu"),
        }

    graphed = GraphedForward(forward, module=model)
    for seed, count in enumerate((6, 6, 4, 4, 1, 1)):
        given = batch(count, seed)
        result, expected = graphed(**given), forward(**given)
        assert type(result) is type(expected)
        assert result.loss.shape == (count,)
        assert differs(result, expected) is None
    assert counts(graphed) == (1, 4, 0)


def test_a_mean_loss_gets_a_capture_of_its_own():
    module = mlp()

    def forward(x, y):
        output = module(x)
        return {"output": output, "loss": nn.functional.mse_loss(output, y)}

    graphed = GraphedForward(forward, module=module)
    for count in (6, 6, 4, 4):
        result = graphed(rows(count), rows(count, 1, 3))
        expected = forward(rows(count), rows(count, 1, 3))
        assert all(torch.equal(result[k].cpu(), expected[k].cpu()) for k in expected)
    assert counts(graphed) == (2, 0, 0)


def test_a_running_batch_norm_is_never_padded_and_never_run_twice():
    torch.manual_seed(2)
    module, twin = (nn.BatchNorm1d(4).to("hpu").requires_grad_(False) for _ in range(2))
    graphed = GraphedForward(module)
    for seed, count in enumerate((6, 4, 6, 4)):
        assert torch.equal(graphed(rows(count, seed)).cpu(), twin(rows(count, seed)).cpu())
        assert torch.equal(module.running_mean.cpu(), twin.running_mean.cpu())
        assert module.num_batches_tracked.item() == seed + 1
    assert counts(graphed) == (2, 0, 0)


def test_card_rule_6_a_written_argument_is_never_padded():
    def forward(x, cache):
        cache += x
        return cache * 2

    graphed = GraphedForward(forward)
    for count in (6, 4, 4):
        cache = torch.zeros(count, 4, device="hpu")
        assert torch.equal(graphed(rows(count), cache).cpu(), rows(count).cpu() * 2)
        assert torch.equal(cache.cpu(), rows(count).cpu())
    assert counts(graphed) == (2, 0, 0)


def test_random_draws_are_those_of_the_call_itself():
    graphed = GraphedForward(lambda x: nn.functional.dropout(x, 0.5) + torch.rand_like(x))
    for count in (6, 4, 4):
        torch.manual_seed(count)
        ours, state = graphed(rows(count)).cpu(), torch.hpu.get_rng_state()
        torch.manual_seed(count)
        theirs = nn.functional.dropout(rows(count), 0.5) + torch.rand_like(rows(count))
        assert torch.equal(ours, theirs.cpu())
        assert torch.equal(state, torch.hpu.get_rng_state())
    assert counts(graphed) == (2, 0, 0)


MIXING = {
    "mean": lambda x: x - x.mean(0),
    "batch norm": lambda x: nn.functional.batch_norm(x, None, None, training=True),
    "softmax over rows": lambda x: x.softmax(0),
    "number of rows": lambda x: x / x.shape[0],
    "previous row": lambda x: x + x.roll(1, 0),
    "a constant": lambda x: (x, x.shape[0]),
    "sorted": lambda x: x.sort(0).values,
    "last row": lambda x: x * x[-1],
    "transposed": lambda x: x[:, :1] @ x[:, :1].t(),
}


@pytest.mark.parametrize("name", MIXING)
def test_rows_that_depend_on_each_other_are_padded_no_more(name):
    forward = MIXING[name]
    graphed = GraphedForward(forward)
    graphed(rows(6))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for seed in range(4):
            x = rows(4, seed)
            assert differs(graphed(x), forward(x)) is None
    texts = [str(w.message) for w in said if "padded" in str(w.message)]
    assert len(texts) == 1
    assert "a batch of 4 rows was padded to 6, and " in texts[0]
    assert "pad_batch=False" in texts[0]
    assert counts(graphed) == (2, 1, 0)


def test_mixing_that_the_last_row_alone_would_hide():
    """A mean over the rows that a flag chooses, where the last row is not chosen."""

    def forward(x, flag):
        return x - (x * flag).sum(0) / flag.sum(0).clamp(min=1)

    graphed = GraphedForward(forward)
    graphed(rows(6), torch.ones(6, 1, device="hpu"))
    flag = torch.tensor([[1.0], [1.0], [0.0]], device="hpu")
    with pytest.warns(UserWarning, match="its rows depend on what it was padded with"):
        graphed(rows(3), flag)
    chosen = torch.ones(3, 1, device="hpu")
    assert_close(graphed(rows(3, 1), chosen), forward(rows(3, 1), chosen))


def test_a_batch_of_equal_rows_proves_nothing():
    def forward(x):
        return x * x.mean(0)

    graphed = GraphedForward(forward)
    graphed(rows(6))
    equal = rows(1).expand(3, 4).contiguous()
    assert_close(graphed(equal), forward(equal))
    with pytest.warns(UserWarning, match="padded to 6"):
        assert_close(graphed(rows(3)), forward(rows(3)))
    assert_close(graphed(rows(3, 2)), forward(rows(3, 2)))


@pytest.mark.parametrize("mode", ["train", "factor", "autocast", "dtype", "structure"])
def test_another_kind_of_call_is_checked_anew(mode):
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x, factor=1):
            y = self.linear(x.to(self.linear.weight.dtype)) * factor
            return y - y.mean(0) if self.training else y

    module = Module().eval().requires_grad_(False).to("hpu")
    graphed = GraphedForward(module)

    def call(fn, x):
        if mode == "factor":
            return fn(x, 2)
        if mode == "dtype":
            return fn(x.bfloat16())
        if mode == "structure":
            return fn(x=x)
        if mode == "autocast":
            with torch.autocast("hpu", dtype=torch.bfloat16):
                return fn(x)
        module.train()
        return fn(x)

    graphed(rows(6))
    graphed(rows(4))
    assert counts(graphed) == (1, 1, 0)
    call(graphed, rows(6))
    assert graphed.stats.captures == 2
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ours = call(graphed, rows(4))
    assert torch.equal(ours.cpu(), call(module, rows(4)).cpu())
    assert len(said) == (1 if mode == "train" else 0)
    assert graphed.stats.padded_calls == 2


@pytest.mark.parametrize("binding", [False, True], ids=["buffers", "bound"])
@pytest.mark.parametrize("clones", [True, False], ids=["clones", "no clones"])
def test_a_whole_data_set_equals_op_by_op_to_the_last_row(binding, clones):
    module = mlp()
    data = rows(53)
    graphed = GraphedForward(module, disable_tensor_cache=binding, clone_outputs=clones)
    for _ in range(2):
        result = torch.cat([graphed(part).clone() for part in data.split(8)])
        expected = torch.cat([module(part) for part in data.split(8)])
        assert_close(result, expected)
        assert torch.equal(result[:48].cpu(), expected[:48].cpu())
    assert counts(graphed) == (1, 2, 0)


def test_inference_mode_and_grad_mode_without_anything_that_wants_one():
    module = mlp().requires_grad_(False)
    graphed = GraphedForward(module)
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with context:
            for count in (6, 4, 4):
                result, expected = graphed(rows(count)), module(rows(count))
                assert_close(result, expected)
                assert result.is_inference() == expected.is_inference()
                assert not result.requires_grad
    assert counts(graphed) == (1, 6, 0)
