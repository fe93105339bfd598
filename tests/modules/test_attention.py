"""Masks built on the device: no host reads, and what stock Transformers computes."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import transformers as tf

from lightning_gaudi import emulator
from lightning_gaudi.modules.attention import (
    OURS,
    build_masks_on_device,
    restore_stock_masks,
)

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WHOLE = {"d_model": 16, "decoder_start_token_id": 1, **TOKENS}
VISION = {name: size for name, size in SMALL.items() if name != "vocab_size"}

IDS = torch.randint(3, 64, (3, 8), generator=torch.Generator().manual_seed(0))
FULL = torch.ones(3, 8, dtype=torch.int64)
RIGHT = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] * 2 + [0] * 6])

MODELS = {
    "bert": (tf.BertModel, tf.BertConfig(**SMALL)),
    "bert-classifier": (tf.BertForSequenceClassification, tf.BertConfig(**SMALL)),
    "distilbert": (
        tf.DistilBertModel,
        tf.DistilBertConfig(vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    ),
    "roberta": (tf.RobertaModel, tf.RobertaConfig(**SMALL, max_position_embeddings=40)),
    "electra": (tf.ElectraModel, tf.ElectraConfig(**SMALL, embedding_size=16)),
    "llama": (
        tf.LlamaForCausalLM,
        tf.LlamaConfig(**SMALL, **TOKENS, num_key_value_heads=1, use_cache=False),
    ),
    "gpt2": (
        tf.GPT2LMHeadModel,
        tf.GPT2Config(
            vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=40, use_cache=False, **TOKENS
        ),
    ),
    "t5": (
        tf.T5ForConditionalGeneration,
        tf.T5Config(
            vocab_size=64, d_kv=8, d_ff=32, num_layers=2, num_heads=2, use_cache=False, **WHOLE
        ),
    ),
    "bart": (
        tf.BartForConditionalGeneration,
        tf.BartConfig(
            vocab_size=64,
            max_position_embeddings=40,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            use_cache=False,
            **WHOLE,
        ),
    ),
    "vit": (tf.ViTModel, tf.ViTConfig(**VISION, image_size=8, patch_size=4)),
}


def make(name: str, attention: str) -> tf.PreTrainedModel:
    kind, config = MODELS[name]
    torch.manual_seed(1)
    model = kind._from_config(copy.deepcopy(config), attn_implementation=attention)
    return model.eval().to("hpu")


def batch_for(name: str, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8).to("hpu")}
    batch = {"input_ids": IDS, "attention_mask": mask}
    if name in ("t5", "bart"):
        batch["decoder_input_ids"] = IDS.flip(1)
    return {key: value.to("hpu") for key, value in batch.items()}


def tensors(output: tf.utils.ModelOutput) -> dict[str, torch.Tensor]:
    return {name: v.cpu() for name, v in output.items() if isinstance(v, torch.Tensor)}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_against_stock_without_host_reads(name: str, attention: str) -> None:
    model = make(name, attention)
    batches = [batch_for(name, mask) for mask in (RIGHT, FULL)]
    with torch.no_grad():
        expected = [tensors(model(**batch)) for batch in batches]
        assert build_masks_on_device(model)
        with emulator.record() as events:
            found = [model(**batch) for batch in batches]
        assert [event.line for event in events if event.kind == "host_read"] == []
    assert model.config._attn_implementation == OURS[attention]
    for key, value in expected[0].items():
        assert torch.equal(tensors(found[0])[key], value), key
    for key, value in expected[1].items():  # without padding stock leaves the mask out
        torch.testing.assert_close(tensors(found[1])[key], value, rtol=1e-5, atol=1e-6)


def test_stock_reads_the_host() -> None:
    """What this is for; else the test above would prove nothing."""
    model = make("bert", "sdpa")
    with torch.no_grad(), emulator.record() as events:
        model(**batch_for("bert", RIGHT))
    assert sum(event.kind == "host_read" for event in events) == 1


def test_without_a_mask_the_library_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has to be looked at, so no mask is made: the same kernels run."""
    attention = torch.nn.functional.scaled_dot_product_attention
    masks = []

    def watched(*args: torch.Tensor, attn_mask: torch.Tensor | None = None, **kwargs: object):
        masks.append(attn_mask)
        return attention(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    model = make("bert", "sdpa")
    batch = {"input_ids": IDS.to("hpu")}
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
        build_masks_on_device(model)
        with emulator.record() as events:
            found = model(**batch).last_hidden_state
    assert not [event for event in events if event.kind == "host_read"]
    assert torch.equal(found.cpu(), expected.cpu())
    assert masks == [None] * 4  # two layers, twice


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
def test_a_static_cache_is_not_read(masked: bool) -> None:
    model = make("llama", "sdpa")
    calls = [IDS[:, :4], IDS[:, 4:6], IDS[:, 6:7]]
    mask = {"attention_mask": RIGHT.flip(1).to("hpu")} if masked else {}

    def run() -> torch.Tensor:
        cache = tf.StaticCache(config=model.config, max_cache_len=8)
        start, logits = 0, []
        for ids in calls:
            positions = torch.arange(start, start + ids.shape[1]).expand(3, -1)
            output = model(
                input_ids=ids.to("hpu"),
                position_ids=positions.to("hpu"),
                past_key_values=cache,
                use_cache=True,
                **mask,
            )
            start += ids.shape[1]
            logits.append(output.logits)
        return torch.cat(logits, 1)

    with torch.no_grad():
        expected = run().cpu()
        assert build_masks_on_device(model)
        with emulator.record() as events:
            found = run()
    assert [event.line for event in events if event.kind == "host_read"] == []
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_parts_with_attention_of_their_own_are_named_one_by_one() -> None:
    config = tf.CLIPConfig(
        text_config={**SMALL, **TOKENS, "eos_token_id": 63},
        vision_config={**VISION, "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    mixed = {"text_config": "eager", "vision_config": "sdpa", "": "sdpa"}
    model = tf.CLIPModel._from_config(config, attn_implementation=mixed)
    assert build_masks_on_device(model)
    names = [c._attn_implementation for c in (config.text_config, config.vision_config)]
    assert names == ["gaudi_eager", "gaudi_sdpa"]
    restore_stock_masks(model)
    names = [c._attn_implementation for c in (config.text_config, config.vision_config)]
    assert names == ["eager", "sdpa"]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        pytest.param(tf.DebertaV2Model, tf.DebertaV2Config(**SMALL), id="deberta"),
        pytest.param(tf.MPNetModel, tf.MPNetConfig(**SMALL), id="mpnet"),
        pytest.param(
            tf.FalconModel,
            tf.FalconConfig(
                vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
            ),
            id="falcon",
        ),
    ],
)
def test_models_that_choose_attention_otherwise_are_left_alone(
    kind: type[tf.PreTrainedModel], config: tf.PretrainedConfig
) -> None:
    model = kind(config)
    before = model.config._attn_implementation
    assert not build_masks_on_device(model)
    assert model.config._attn_implementation == before


def test_models_that_ask_for_the_name_itself_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As BERT did in 4.56: under our name it would take the path of eager attention."""
    getsource = inspect.getsource

    def older(module: object) -> str:
        return getsource(module) + 'config._attn_implementation == "sdpa"'

    model = make("bert", "sdpa")
    monkeypatch.setattr(inspect, "getsource", older)
    assert not build_masks_on_device(model)
    assert model.config._attn_implementation == "sdpa"


def test_twice_is_once_and_saved_is_stock(tmp_path) -> None:
    model = make("bert", "sdpa").cpu()
    assert build_masks_on_device(model)
    assert build_masks_on_device(model)
    model.save_pretrained(tmp_path)
    assert "gaudi" not in (tmp_path / "config.json").read_text()
    loaded = tf.BertModel.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"
    restore_stock_masks(model)
    assert model.config._attn_implementation == "sdpa"
