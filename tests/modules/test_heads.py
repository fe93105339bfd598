"""Losses and metrics against PyTorch's and torchmetrics' own, and without what has no label."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchmetrics as tm
from torch import Tensor
from torch.nn import functional

from lightning_gaudi.modules import heads, losses, scores

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
NAN = float("nan")


def classes(rows: int, count: int, ignored: int = 2) -> tuple[Tensor, Tensor]:
    """Predictions and labels, some without one; the last class never occurs."""
    predicted, labels = torch.randint(count - 1, (2, rows))
    labels[:ignored] = -100
    return predicted, labels


# --- losses -------------------------------------------------------------------------------------


def test_sums_of_parts_are_those_of_all() -> None:
    logits, (_, labels) = torch.randn(9, 4), classes(9, 4)
    parts = [losses.cross_entropy(logits[i : i + 3], labels[i : i + 3]) for i in (0, 3, 6)]
    total, number = (sum(values) for values in zip(*parts, strict=True))
    whole = functional.cross_entropy(logits, labels)
    torch.testing.assert_close(total / number, whole[None], **CLOSE)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy(smoothing: float) -> None:
    logits, (_, labels) = torch.randn(9, 4), classes(9, 4)
    found = losses.cross_entropy(logits, labels, smoothing).mean()
    expected = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_rows_without_a_label_add_nothing() -> None:
    """What fills a batch up has -100 or NaN as its labels."""
    logits = torch.randn(4, 3)
    numbers = torch.rand(4, 3)
    for loss, labels, filler in (
        (losses.cross_entropy, torch.tensor([0, 1, 2, 0]), -100),
        (losses.binary_cross_entropy, numbers.round(), NAN),
        (losses.squared_error, numbers, NAN),
    ):
        filled = labels.clone()
        filled[2:] = filler
        found, expected = loss(logits, filled), loss(logits[:2], labels[:2])
        torch.testing.assert_close(found.mean(), expected.mean(), **CLOSE)
        assert torch.equal(found.num_terms, expected.num_terms)
    positions = torch.tensor([0, 2, -100, -100])
    found = losses.span_cross_entropy(logits, logits, positions, positions)
    expected = functional.cross_entropy(logits[:2], positions[:2])
    torch.testing.assert_close(found.mean(), expected, **CLOSE)


@pytest.mark.parametrize("filler", [-100, NAN], ids=["whole", "floating"])
def test_a_batch_without_any_label_has_a_loss_and_gradients_of_zero(filler: float) -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    if filler == filler:
        loss = losses.cross_entropy(logits, torch.full((4,), filler)).mean()
    else:
        loss = losses.squared_error(logits, torch.full((4, 3), filler)).mean()
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(4, 3))


def test_gradients_where_labels_are_nan_are_numbers() -> None:
    for loss in (losses.binary_cross_entropy, losses.squared_error):
        logits = torch.randn(2, 2, requires_grad=True)
        loss(logits, torch.tensor([[1.0, NAN], [NAN, 0.0]])).mean().backward()
        assert (logits.grad != 0).tolist() == [[True, False], [False, True]]
        assert logits.grad.isfinite().all()


def test_losses_of_half_precision_are_computed_in_float32() -> None:
    logits = torch.randn(64, 8).bfloat16()
    labels = torch.randint(8, (64,))
    found = losses.cross_entropy(logits, labels).mean()
    torch.testing.assert_close(found, functional.cross_entropy(logits.float(), labels), **CLOSE)


# --- metrics ------------------------------------------------------------------------------------


def test_class_scores() -> None:
    ours = scores.ClassScores(5)
    predicted, labels = classes(60, 5)
    for rows in torch.arange(60).split(17):
        ours.update(predicted[rows], labels[rows])
    found = ours.compute()
    accuracy = tm.classification.MulticlassAccuracy(5, average="micro", ignore_index=-100)
    f1 = tm.classification.MulticlassF1Score(5, average="macro", ignore_index=-100)
    torch.testing.assert_close(found["accuracy"], accuracy(predicted, labels), **CLOSE)
    torch.testing.assert_close(found["f1"], f1(predicted, labels), **CLOSE)


def test_multilabel_scores() -> None:
    ours = scores.MultilabelScores(4)
    predicted, labels = torch.randint(2, (2, 30, 4))
    labels[:, 3], predicted[:, 3] = 0, 0  # a label that never holds and is never predicted
    for rows in torch.arange(30).split(11):
        ours.update(predicted[rows], labels[rows].float())
    found = ours.compute()
    accuracy = tm.classification.MultilabelAccuracy(4)(predicted, labels)
    torch.testing.assert_close(found["accuracy"], accuracy, **CLOSE)
    f1 = tm.classification.MultilabelF1Score(4)(predicted, labels)
    torch.testing.assert_close(found["f1"], f1, **CLOSE)
    ours.update(torch.ones(2, 4).long(), torch.full((2, 4), NAN))
    assert found == ours.compute()


@pytest.mark.parametrize("outputs", [1, 3])
def test_number_scores(outputs: int) -> None:
    ours = scores.NumberScores(outputs)
    labels = torch.randn(50, outputs) + 1000  # whose plain sum of squares would be too coarse
    predicted = labels + torch.randn(50, outputs)
    for rows in torch.arange(50).split(13):
        ours.update(predicted[rows], labels[rows])
    ours.update(torch.randn(2, outputs), torch.full((2, outputs), NAN))
    found = ours.compute()
    mse = tm.MeanSquaredError()(predicted, labels)
    torch.testing.assert_close(found["mse"], mse, rtol=1e-4, atol=1e-4)
    pearson = torch.stack(
        [torch.corrcoef(torch.stack([x, y]))[0, 1] for x, y in zip(predicted.T, labels.T)]  # noqa: B905
    )
    torch.testing.assert_close(found["pearson"], pearson.mean(), rtol=1e-4, atol=1e-4)
    # As torchmetrics stacks the states of ranks.
    parts = [scores.NumberScores(outputs) for _ in range(3)]
    for part, rows in zip(parts, torch.arange(50).split(20), strict=True):
        part.update(predicted[rows], labels[rows])
    moments = torch.stack([part.moments for part in parts])
    parts[0].moments = moments  # which has computed nothing yet, and keeps no result
    merged = parts[0].compute()["pearson"]
    torch.testing.assert_close(merged, found["pearson"], rtol=1e-4, atol=1e-4)


def test_correlation_of_numbers_whose_product_float32_cannot_hold() -> None:
    for scale in (1e9, 1e-12):
        ours = scores.NumberScores(1)
        labels = torch.randn(50, 1)
        predicted = labels + torch.randn(50, 1)
        ours.update(predicted * scale, labels * scale * 100)
        pearson = torch.corrcoef(torch.cat([predicted, labels], 1).T)[0, 1]
        torch.testing.assert_close(ours.compute()["pearson"], pearson, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool], ids=str)
def test_classes_of_other_whole_numbers(dtype: torch.dtype) -> None:
    logits, labels = torch.randn(6, 2), torch.tensor([0, 1, 1, 0, 1, 0])
    found = losses.cross_entropy(logits, labels.to(dtype)).mean()
    torch.testing.assert_close(found, functional.cross_entropy(logits, labels))


def test_mean_loss_and_perplexity() -> None:
    logits, (_, labels) = torch.randn(1, 12, 7), classes(12, 7)
    ours = scores.MeanLoss(perplexity=True)
    for rows in torch.arange(12).split(5):
        ours.update(losses.cross_entropy(logits[0, rows], labels[rows]))
    found = ours.compute()
    expected = functional.cross_entropy(logits[0], labels)
    torch.testing.assert_close(found["loss"], expected, **CLOSE)
    perplexity = tm.text.Perplexity(ignore_index=-100)(logits, labels[None])
    torch.testing.assert_close(found["perplexity"], perplexity, **CLOSE)


def test_scores_without_any_label_are_not_numbers() -> None:
    none = torch.full((2,), -100)
    loss, share, found = scores.MeanLoss(), scores.Share("accuracy"), scores.ClassScores(3)
    loss.update(losses.cross_entropy(torch.randn(2, 3), none))
    share.update(torch.ones(2), torch.zeros(2).bool())
    found.update(torch.zeros(2).long(), none)
    values = [*loss.compute().values(), *share.compute().values(), *found.compute().values()]
    assert len(values) == 4
    assert all(value.isnan() for value in values)


def test_exact_matches_and_overlap() -> None:
    head = heads.SpanHead(30)
    made = head.make_scores()
    start = torch.tensor([[0, 9, 0, 0], [9, 0, 0, 0], [0, 0, 9, 0], [9.0, 0, 0, 0]])
    end = torch.tensor([[0, 0, 9, 0], [0, 9, 0, 0], [0, 0, 0, 9], [0, 0, 0, 9.0]])
    outputs = SimpleNamespace(start_logits=start, end_logits=end)
    batch = {
        "start_positions": torch.tensor([1, 1, 0, -100]),
        "end_positions": torch.tensor([2, 3, 1, -100]),
    }
    head.update(made, outputs, batch)
    # (1, 2) is right; (0, 1) and (1, 3) share one of 2 and 3; (2, 3) and (0, 1) share none.
    assert made["exact"].compute()["exact_match"].item() == pytest.approx(1 / 3)
    assert made["overlap"].compute()["f1"].item() == pytest.approx((1 + 2 / 5 + 0) / 3)


@pytest.mark.parametrize("kind", ["masked-lm", "causal-lm"])
def test_token_accuracy(kind: str) -> None:
    head = {"masked-lm": heads.MaskedTokenHead, "causal-lm": heads.NextTokenHead}[kind](5)
    logits, labels = torch.randn(3, 6, 5), torch.randint(5, (3, 6))
    labels[0, :3] = -100
    made = head.make_scores()
    head.update(made, SimpleNamespace(logits=logits), {"labels": labels})
    predicted = logits.argmax(-1)
    if kind == "causal-lm":
        predicted, labels = predicted[:, :-1], labels[:, 1:]
    known = labels != -100
    expected = (predicted == labels)[known].float().mean()
    torch.testing.assert_close(made["tokens"].compute()["accuracy"], expected, **CLOSE)


# --- checks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "batch", "message"),
    [
        pytest.param(
            heads.ClassHead(3),
            {"labels": torch.tensor([0, 3, -1])},
            r"must be in 0 to 2, or -100 for none, but it holds -1, 3\. The model tells 3 classes "
            r"apart: set num_labels",
            id="class-range",
        ),
        pytest.param(
            heads.ClassHead(3),
            {"labels": torch.rand(2, 3)},
            r"whole numbers \(torch.int64\), but it is torch.float32 of shape \(2, 3\).*or "
            "problem_type for labels that are no classes",
            id="class-floats",
        ),
        pytest.param(
            heads.ClassHead(3),
            {"labels": torch.zeros(2, 3).long()},
            r"must have the shape \[B\], but it has \[2, 3\]",
            id="class-shape",
        ),
        pytest.param(
            heads.MultilabelHead(3),
            {"labels": torch.zeros(4)},
            r"must have the shape \[B, 3\], but it has \[4\]",
            id="multilabel-shape",
        ),
        pytest.param(
            heads.MultilabelHead(2),
            {"labels": torch.tensor([[0.0, 2.0]])},
            r"must be in 0 to 1, or NaN for none, but it goes from 0 to 2",
            id="multilabel-range",
        ),
        pytest.param(
            heads.NumberHead(1), {"labels": torch.tensor([float("inf")])}, "finite", id="infinite"
        ),
        pytest.param(
            heads.NumberHead(2), {"labels": torch.zeros(3)}, r"shape \[B, 2\]", id="number-shape"
        ),
        pytest.param(
            heads.TokenClassHead(3),
            {"labels": torch.zeros(2, 4).long(), "input_ids": torch.zeros(2, 5).long()},
            r"shape \[2, 5\], but it has \[2, 4\]",
            id="token-shape",
        ),
        pytest.param(
            heads.MaskedTokenHead(9),
            {"labels": torch.tensor([[9]])},
            "must be in 0 to 8.*is the tokenizer another model's",
            id="vocabulary",
        ),
        pytest.param(
            heads.Seq2SeqHead(9), {"labels": torch.tensor([1])}, "Each row has one text", id="text"
        ),
        pytest.param(
            heads.SpanHead(9),
            {"start_positions": torch.tensor([1, 5]), "end_positions": torch.tensor([1, 4])},
            r"row 1 .* ends \(at token 4\) before it starts \(at token 5\)",
            id="span-order",
        ),
        pytest.param(
            heads.SpanHead(9),
            {"start_positions": torch.rand(2), "end_positions": torch.zeros(2).long()},
            r"batch\['start_positions'\] must hold token positions",
            id="span-floats",
        ),
    ],
)
def test_labels_that_cannot_be(head: heads.Head, batch: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head.check(batch)


@pytest.mark.parametrize(
    ("head", "labels"),
    [
        pytest.param(heads.ClassHead(3), torch.tensor([0, 2, -100]), id="classes"),
        pytest.param(heads.ClassHead(3), torch.tensor([[0], [2]]), id="a-column-of-classes"),
        pytest.param(heads.MultilabelHead(2), torch.tensor([[0, 1.0], [NAN, 0.5]]), id="floats"),
        pytest.param(heads.MultilabelHead(2), torch.tensor([[0, 1], [-100, 1]]), id="whole"),
        pytest.param(heads.NumberHead(1), torch.tensor([0.5, NAN]), id="numbers"),
        pytest.param(heads.NumberHead(1), torch.tensor([[5], [-100]]), id="whole-numbers"),
    ],
)
def test_labels_that_can_be(head: heads.Head, labels: Tensor) -> None:
    head.check({"labels": labels})
    logits = torch.randn(len(labels), getattr(head, "num_labels", 1))
    loss = head.loss(SimpleNamespace(logits=logits), {"labels": labels}).mean()
    assert loss.isfinite()


def test_labels_on_the_device_are_not_read() -> None:
    from lightning_gaudi import emulator

    labels = torch.tensor([7]).to("hpu")
    with emulator.record() as events:
        heads.ClassHead(3).check({"labels": labels})
        heads.MultilabelHead(1).check({"labels": labels[None]})
    assert not [e for e in events if e.kind in ("host_read", "d2h")]
