"""Every task against stock Transformers on the CPU: logits, loss, gradients, predictions."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from modules.tasks_cases import BART, BERT, CASES, batches, config_of, make, stock_of, to_hpu
from torch import Tensor
from torch.nn import functional

from lightning_gaudi.modules import TransformersModule

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def outputs_and_loss(name: str, module: TransformersModule) -> tuple[dict[str, Tensor], Tensor]:
    batch = to_hpu(batches(name)[0])
    outputs = module(**batch)
    return outputs, module.head.loss(outputs, batch).mean()


@pytest.mark.parametrize("name", CASES)
def test_against_stock(name: str) -> None:
    module = make(name)
    stock = stock_of(module)
    assert stock.config._attn_implementation == "sdpa"  # the library's own attention
    module.to("hpu")
    (batch,) = batches(name)
    expected = stock(**batch)
    outputs, loss = outputs_and_loss(name, module)
    for key in ("logits", "start_logits", "end_logits"):
        if key in expected:
            torch.testing.assert_close(outputs[key].cpu(), expected[key], **CLOSE)
    torch.testing.assert_close(loss.cpu(), expected.loss, **CLOSE)
    loss.backward()
    expected.loss.backward()
    found = dict(module.named_parameters())
    for key, parameter in stock.named_parameters():
        own = found[f"model.{key}"]
        if parameter.grad is None:
            assert own.grad is None, key
        else:
            torch.testing.assert_close(own.grad.cpu(), parameter.grad, **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_predictions(name: str) -> None:
    module = make(name).eval()
    stock = stock_of(module).eval()
    module.to("hpu")
    (batch,) = batches(name)
    with torch.no_grad():
        expected = stock(**batch)
        found = {key: value.cpu() for key, value in module.predict_step(to_hpu(batch), 0).items()}
    if "spans" in found:
        logits = torch.stack([expected.start_logits, expected.end_logits], -1)
        torch.testing.assert_close(found["logits"], logits, **CLOSE)
        assert torch.equal(found["spans"], best_spans(logits, batch["attention_mask"]))
        rows = torch.arange(len(logits))
        sums = logits[rows, found["spans"][:, 0], 0] + logits[rows, found["spans"][:, 1], 1]
        torch.testing.assert_close(found["scores"], sums, **CLOSE)
        return
    logits = expected.logits
    torch.testing.assert_close(found["logits"], logits, **CLOSE)
    if name == "multilabel":
        assert torch.equal(found["labels"], (logits.sigmoid() > 0.5).long())
        torch.testing.assert_close(found["probabilities"], logits.sigmoid(), **CLOSE)
    elif name == "number":
        torch.testing.assert_close(found["labels"], logits[:, 0], **CLOSE)
    elif name == "numbers":
        torch.testing.assert_close(found["labels"], logits, **CLOSE)
    elif name == "token-classes":
        padded = torch.where(batch["attention_mask"].bool(), logits.argmax(-1), -100)
        assert torch.equal(found["labels"], padded)
        assert len(set(padded.flatten().tolist())) > 2
    else:
        assert torch.equal(found["labels"], logits.argmax(-1))
    if name in ("classes", "classes-of-a-decoder", "images"):
        torch.testing.assert_close(found["probabilities"], logits.softmax(-1), **CLOSE)


def best_spans(logits: Tensor, mask: Tensor, longest: int = 30) -> Tensor:
    """By trying all of them."""
    best = []
    for row, row_mask in zip(logits.tolist(), mask.tolist(), strict=True):
        spans = [
            (row[i][0] + row[j][1], i, j)
            for i in range(len(row))
            for j in range(i, min(len(row), i + longest))
            if row_mask[i] and row_mask[j]
        ]
        best.append(max(spans)[1:])
    return torch.tensor(best)


def test_spans_have_at_most_max_answer_length() -> None:
    module = make("spans", max_answer_length=2).eval().to("hpu")
    (batch,) = batches("spans")
    with torch.no_grad():
        found = module.predict_step(to_hpu(batch), 0)
    expected = best_spans(found["logits"].cpu(), batch["attention_mask"], 2)
    assert torch.equal(found["spans"].cpu(), expected)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_embeddings(pooling: str, side: str) -> None:
    torch.manual_seed(1)
    module = TransformersModule(config_of("classes"), "feature-extraction", pooling=pooling)
    stock = stock_of(module).eval()
    module.eval().to("hpu")
    (batch,) = batches("classes")
    del batch["labels"]
    if side == "left":
        batch = {name: value.flip(1) for name, value in batch.items()}
    with torch.no_grad():
        hidden = stock(**batch).last_hidden_state
        found = module.predict_step(to_hpu(batch), 0)
    assert list(found) == ["embeddings"]
    rows = [h[m.bool()] for h, m in zip(hidden, batch["attention_mask"], strict=True)]
    expected = {
        "mean": torch.stack([row.mean(0) for row in rows]),
        "cls": torch.stack([row[0] for row in rows]),
        "last": torch.stack([row[-1] for row in rows]),
    }[pooling]
    torch.testing.assert_close(found["embeddings"].cpu(), expected, **CLOSE)


def test_embeddings_of_length_one_and_of_images() -> None:
    torch.manual_seed(1)
    module = TransformersModule(config_of("images"), "feature-extraction", normalize=True)
    stock = stock_of(module).eval()
    (batch,) = batches("images")
    with torch.no_grad():
        hidden = stock(pixel_values=batch["pixel_values"]).last_hidden_state
        found = module.eval().predict_step({"pixel_values": batch["pixel_values"]}, 0)
    expected = functional.normalize(hidden.mean(1), dim=-1)
    torch.testing.assert_close(found["embeddings"], expected, **CLOSE)


def test_label_smoothing_as_transformers_has_it() -> None:
    module = make("classes")
    (batch,) = batches("classes")
    outputs = module(**batch)
    found = module.head.loss(outputs, batch, 0.1).mean()
    smoother = tf.trainer_pt_utils.LabelSmoother(epsilon=0.1)
    torch.testing.assert_close(found, smoother(outputs, batch["labels"]), **CLOSE)


def test_without_a_mask_nothing_is_padded() -> None:
    """A decoder's masks are made without host reads where the batch has none."""
    from lightning_gaudi import emulator

    module = make("llama").to("hpu")
    (batch,) = batches("llama")
    ids = batch["input_ids"].clamp(min=3)
    with torch.no_grad():
        expected = stock_of(module)(input_ids=ids).logits
        ids = ids.to("hpu")
        with emulator.record() as events:
            found = module(input_ids=ids).logits
    assert not [event for event in events if event.kind == "host_read"]
    torch.testing.assert_close(found.cpu(), expected, **CLOSE)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    plain, checkpointed = make("classes"), make("classes", gradient_checkpointing=True)
    assert any(getattr(m, "gradient_checkpointing", False) for m in checkpointed.model.modules())
    for module in (plain, checkpointed):
        module.to("hpu")
        outputs_and_loss("classes", module)[1].backward()
    for one, other in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(one.grad.cpu(), other.grad.cpu())


def test_models_from_everything(tmp_path) -> None:
    """A path, a config, a dict and a model give the same module."""
    given = make("classes")
    given.save_pretrained(tmp_path)
    config = tf.BertConfig(**BERT, num_labels=3)
    before = config.to_dict()
    for source in (str(tmp_path), tmp_path, stock_of(given).eval()):
        module = TransformersModule(source)
        assert module.model.training  # from_pretrained gives it in evaluation mode
        assert type(module.model) is tf.BertForSequenceClassification
        for key, value in given.model.state_dict().items():
            assert torch.equal(module.model.state_dict()[key], value), key
    torch.manual_seed(1)
    module = TransformersModule(config)
    for key, value in given.model.state_dict().items():
        assert torch.equal(module.model.state_dict()[key], value), key
    assert config.to_dict() == before  # the user's own object is left alone
    assert all(name.startswith("model.") for name in module.state_dict())


def test_loaded_weights_are_float32_unless_told_otherwise(tmp_path) -> None:
    tf.BertModel(tf.BertConfig(**BERT)).to(torch.bfloat16).save_pretrained(tmp_path)
    module = TransformersModule(tmp_path, "feature-extraction")
    assert module.model.dtype == torch.float32
    module = TransformersModule(
        tmp_path, "feature-extraction", model_arguments={"dtype": "bfloat16"}
    )
    assert module.model.dtype == torch.bfloat16


@pytest.mark.parametrize("model_type", ["m2m_100", "blenderbot"])
def test_writers_that_shift_labels_only_inside_their_forward(model_type: str) -> None:
    """They have no ``prepare_decoder_input_ids_from_labels``."""
    torch.manual_seed(0)
    config = {**BART, "activation_dropout": 0.0, "attention_dropout": 0.0, "pad_token_id": 1}
    config |= {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
    module = TransformersModule({"model_type": model_type, **config}, "seq2seq-lm")
    assert not hasattr(module.model, "prepare_decoder_input_ids_from_labels")
    (batch,) = batches("bart")
    stock = stock_of(module)(**batch)
    outputs = module(**batch)
    torch.testing.assert_close(outputs.logits, stock.logits, **CLOSE)
    torch.testing.assert_close(module.head.loss(outputs, batch).mean(), stock.loss, **CLOSE)

    module.model.config.pad_token_id = None
    with pytest.raises(ValueError, match=r"needs decoder_start_token_id .* but has 2 and None"):
        module(**batch)
