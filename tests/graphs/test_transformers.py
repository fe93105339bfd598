"""Stock Transformers models, called as their documentation shows, captured with 2-D masks.

Each result is compared with the same model run op by op on the same device with the same mask.
"""

from __future__ import annotations

import warnings

import lightning as L
import pytest
import torch
import transformers as tf
from torch.utils.data import DataLoader
from transformers import masking_utils
from transformers.utils import import_utils

from lightning_gaudi import GaudiStrategy, HPUGraphCallback
from lightning_gaudi.errors import CaptureError, HostReadError
from lightning_gaudi.graphs import GraphedForward
from lightning_gaudi.graphs import transformers_masks as ours

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {**SMALL, **TOKENS, "num_key_value_heads": 1}
WHOLE = {"d_model": 16, "decoder_start_token_id": 1, **TOKENS}
HALVES = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}

IDS = torch.randint(3, 64, (3, 8), generator=torch.Generator().manual_seed(0))
FULL = torch.ones(3, 8, dtype=torch.int64)
RIGHT = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] * 2 + [0] * 6])
LEFT = RIGHT.flip(1)

CONFIGS = {
    "Bert": tf.BertConfig(**SMALL),
    "DistilBert": tf.DistilBertConfig(vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "Roberta": tf.RobertaConfig(**SMALL, max_position_embeddings=40),
    "Electra": tf.ElectraConfig(**SMALL, embedding_size=16),
    "MPNet": tf.MPNetConfig(**SMALL),
    "Albert": tf.AlbertConfig(**SMALL, embedding_size=16),
    "DebertaV2": tf.DebertaV2Config(**SMALL),
    "ModernBert": tf.ModernBertConfig(
        **SMALL, **TOKENS, cls_token_id=1, sep_token_id=2, local_attention=4
    ),
    "GPT2": tf.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=40, **TOKENS),
    "Llama": tf.LlamaConfig(**DECODER),
    "Qwen2": tf.Qwen2Config(**DECODER),
    "Mistral": tf.MistralConfig(**DECODER, sliding_window=3),
    "Gemma": tf.GemmaConfig(**DECODER, head_dim=8),
    "T5": tf.T5Config(vocab_size=64, d_kv=8, d_ff=32, num_layers=2, num_heads=2, **WHOLE),
    "Bart": tf.BartConfig(vocab_size=64, max_position_embeddings=40, **HALVES, **WHOLE),
}
MODELS = {
    "Bert": [
        "Model",
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForQuestionAnswering",
    ],
    "DistilBert": ["Model", "ForSequenceClassification"],
    "Roberta": ["Model", "ForTokenClassification"],
    "Electra": ["Model", "ForQuestionAnswering"],
    "MPNet": ["Model"],
    "Albert": ["Model", "ForSequenceClassification"],
    "DebertaV2": ["Model"],
    "ModernBert": ["Model"],
    "GPT2": ["LMHeadModel", "ForSequenceClassification"],
    "Llama": ["ForCausalLM", "ForSequenceClassification"],
    "Qwen2": ["ForCausalLM", "ForTokenClassification"],
    "Mistral": ["ForCausalLM"],
    "Gemma": ["ForCausalLM"],
    "T5": ["EncoderModel", "ForConditionalGeneration"],
    "Bart": ["ForConditionalGeneration"],
}
WITHOUT_SDPA = {"MPNet", "DebertaV2"}
CASES = [
    pytest.param(family, head, attention, id=f"{family}{head}-{attention}")
    for family, heads in MODELS.items()
    for head in heads
    for attention in ("eager", "sdpa")
    if attention == "eager" or family not in WITHOUT_SDPA
]


def make(family, head="Model", attention="sdpa"):
    torch.manual_seed(1)
    config = type(CONFIGS[family]).from_dict(CONFIGS[family].to_dict())
    model = getattr(tf, family + head)._from_config(config, attn_implementation=attention)
    return model.eval().to("hpu")


def arguments(family, head, mask, shift=0):
    batch = {"input_ids": (IDS + shift) % 61 + 3}
    if mask is not None:
        batch["attention_mask"] = mask
    if head == "ForConditionalGeneration":
        batch["labels"] = batch["input_ids"].flip(1)
    elif head in ("ForCausalLM", "LMHeadModel"):
        batch["labels"] = batch["input_ids"]
    elif head == "ForTokenClassification":
        batch["labels"] = batch["input_ids"] % 2
    elif head == "ForSequenceClassification":
        batch["labels"] = batch["input_ids"][:, 0] % 2
    elif head == "ForQuestionAnswering":
        batch["start_positions"] = batch["input_ids"][:, 0] % 8
        batch["end_positions"] = batch["input_ids"][:, 1] % 8
    batch = {name: value.to("hpu") for name, value in batch.items()}
    if family in ("GPT2", "Llama", "Qwen2", "Mistral", "Gemma", "Bart") or (
        family == "T5" and head != "EncoderModel"
    ):
        batch["use_cache"] = False
    return batch


def assert_same_output(one, other):
    assert type(one) is type(other)
    assert list(one.keys()) == list(other.keys())
    for name, value in other.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(one[name].cpu(), value.cpu()), name
        else:
            assert type(one[name]) is type(value)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("first", ["full", "padded"])
@pytest.mark.parametrize(("family", "head", "attention"), CASES)
def test_stock_models_with_any_mask(family, head, attention, first):
    model = make(family, head, attention)
    graphed = GraphedForward(model.forward)
    masks = [FULL, RIGHT, LEFT, RIGHT.flip(0), FULL]
    for shift, mask in enumerate(masks if first == "full" else masks[1:]):
        batch = arguments(family, head, mask, shift)
        assert_same_output(graphed(**batch), model(**batch))
    assert graphed.stats.captures == 1
    for shift in range(2):
        batch = arguments(family, head, None, shift)
        assert_same_output(graphed(**batch), model(**batch))
    assert graphed.stats.captures == 2


def test_never_wrong_5_a_mask_captured_full_and_replayed_padded():
    for family in ("Bert", "Llama"):
        head = "Model" if family == "Bert" else "ForCausalLM"
        model = make(family, head)
        graphed = GraphedForward(model)
        for mask in (FULL, RIGHT, LEFT):
            batch = arguments(family, head, mask)
            assert_same_output(graphed(**batch), model(**batch))
        assert (graphed.stats.captures, graphed.stats.replays) == (1, 2)


@pytest.mark.slow
def test_decoder_ids_and_masks_of_their_own():
    model = make("T5", "ForConditionalGeneration")
    graphed = GraphedForward(model)
    for mask, decoder_mask in ((FULL, FULL), (RIGHT, FULL), (FULL, RIGHT), (LEFT, RIGHT)):
        batch = {
            "input_ids": IDS.to("hpu"),
            "attention_mask": mask.to("hpu"),
            "decoder_input_ids": IDS.flip(0).to("hpu"),
            "decoder_attention_mask": decoder_mask.to("hpu"),
            "use_cache": False,
        }
        assert_same_output(graphed(**batch), model(**batch))
    assert graphed.stats.captures == 1


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_images_and_sound(attention):
    vision = {key: value for key, value in SMALL.items() if key != "vocab_size"}
    sizes = {"image_size": 8, "patch_size": 4}
    pixels = [torch.randn(2, 3, 8, 8).to("hpu") for _ in range(2)]
    ids = torch.cat([IDS[:2, :7], torch.full((2, 1), 63)], 1).to("hpu")
    sounds = [torch.randn(2, 8, 20).to("hpu") for _ in range(2)]
    whisper = tf.WhisperConfig(
        vocab_size=64, num_mel_bins=8, max_source_positions=10, max_target_positions=12,
        **HALVES, **WHOLE,
    )  # fmt: skip
    clip = tf.CLIPConfig(
        text_config={**SMALL, **TOKENS, "eos_token_id": 63},
        vision_config={**vision, **sizes},
        projection_dim=8,
    )
    both = [{"pixel_values": p, "input_ids": ids} for p in pixels]
    cases = [
        (tf.ViTModel, tf.ViTConfig(**vision, **sizes), [{"pixel_values": p} for p in pixels]),
        (
            tf.PixioModel,  # resizes its position embeddings while it is traced
            tf.PixioConfig(mlp_ratio=2, **vision, **sizes),
            [{"pixel_values": p} for p in pixels],
        ),
        (
            tf.ViTForImageClassification,
            tf.ViTConfig(**vision, **sizes),
            [{"pixel_values": p, "labels": torch.tensor([0, 1]).to("hpu")} for p in pixels],
        ),
        (
            tf.WhisperForConditionalGeneration,
            whisper,
            [
                {"input_features": s, "decoder_input_ids": ids[:, :5], "use_cache": False}
                for s in sounds
            ],
        ),
        (
            tf.CLIPModel,
            clip,
            [
                {**batch, "attention_mask": mask[:2].to("hpu")}
                for batch, mask in zip(both, (FULL, RIGHT), strict=True)
            ],
        ),
    ]
    for kind, config, batches in cases:
        model = kind._from_config(config, attn_implementation=attention).eval().to("hpu")
        graphed = GraphedForward(model)
        for batch in batches:
            result, expected = graphed(**batch), model(**batch)
            for name, value in expected.items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(result[name].cpu(), value.cpu()), (kind, name)
        assert (graphed.stats.captures, graphed.stats.replays) == (1, 1), kind


class Encoder(L.LightningModule):
    """As users write it: mean of the last hidden states, mask and all."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **batch):
        hidden = self.model(**batch).last_hidden_state
        weights = batch["attention_mask"].unsqueeze(-1).float()
        return (hidden * weights).sum(1) / weights.sum(1)

    def predict_step(self, batch, batch_idx):
        return self(**batch)


def test_a_lightning_module_without_edits():
    batches = [{"input_ids": IDS, "attention_mask": mask} for mask in (FULL, RIGHT, LEFT, FULL)]
    model = make("Bert").cpu()
    outputs = []
    graphs = HPUGraphCallback()
    for callbacks in ([graphs], []):
        trainer = L.Trainer(
            accelerator="hpu",
            strategy=GaudiStrategy(),
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        outputs.append(trainer.predict(Encoder(model), DataLoader(batches, batch_size=None)))
    for one, other in zip(*outputs, strict=True):
        assert torch.equal(one.cpu(), other.cpu())
    assert (graphs.stats.captures, graphs.stats.replays) == (1, 3)


def test_a_returned_cache_is_refused_with_the_remedy():
    model = make("Llama", "ForCausalLM")
    batch = arguments("Llama", "ForCausalLM", FULL)
    del batch["use_cache"]
    with pytest.raises(CaptureError, match=r"DynamicCache.*use_cache=False"):
        GraphedForward(model)(**batch)
    graphed = GraphedForward(model, on_failure="eager")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = graphed(**batch)
    assert any("op by op from now on" in str(w.message) for w in said)
    assert torch.equal(result.logits.cpu(), model(**batch).logits.cpu())
    assert result.past_key_values.get_seq_length() == 8


def test_nothing_is_replaced_outside_a_capture():
    before = import_utils.is_cuda_stream_capturing
    answers = []

    def forward(x):
        answers.append((import_utils.is_tracing(), torch.compiler.is_compiling()))
        return x * 2

    graphed = GraphedForward(forward)
    graphed(torch.ones(2, device="hpu"))
    assert answers == [(True, False)]  # no other code is told that it is compiled
    assert import_utils.is_cuda_stream_capturing is before
    assert not import_utils.is_tracing()


def test_versions_that_ask_the_compiler(monkeypatch):
    """4.53 to 4.56: ``masking_utils`` asks ``is_torchdynamo_compiling`` itself."""
    monkeypatch.setattr(masking_utils, "is_torchdynamo_compiling", lambda: False, raising=False)
    monkeypatch.setattr(
        masking_utils, "is_tracing", lambda tensor=None: masking_utils.is_torchdynamo_compiling()
    )
    monkeypatch.setattr(ours, "_MASK_QUESTIONS", ours._MASK_QUESTIONS[1:])
    model = make("Bert")
    graphed = GraphedForward(model)
    for mask in (FULL, RIGHT):
        batch = arguments("Bert", "Model", mask)
        assert_same_output(graphed(**batch), model(**batch))
    assert graphed.stats.replays == 1


def test_versions_without_any_question_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(ours, "_MASK_QUESTIONS", (("transformers.masking_utils", "not_there"),))
    with pytest.raises(HostReadError, match=r"transformers/masking_utils\.py:\d+, called from"):
        GraphedForward(make("Bert"))(**arguments("Bert", "Model", FULL))


def test_a_value_cached_by_the_library_is_not_kept_from_a_capture():
    from transformers.pytorch_utils import compile_compatible_method_lru_cache

    class Positions:
        @compile_compatible_method_lru_cache(maxsize=2)
        def embed(self, length, device):
            return torch.arange(length, device=device) * 2.0

    positions = Positions()
    positions.embed(3, "hpu")  # in the cache: a tensor from outside for a capture

    def forward(x):
        return x + positions.embed(x.shape[0], "hpu")

    graphed = GraphedForward(forward)
    for step in range(2):
        x = torch.full((3,), float(step), device="hpu")
        assert torch.equal(graphed(x).cpu(), forward(x).cpu())
    assert graphed.stats.replays == 1


def test_transformers_is_not_imported(run_python):
    result = run_python(
        """
        import sys
        import torch
        from lightning_gaudi.graphs import GraphedForward
        from lightning_gaudi.runtime import loading
        loading.load("lazy")
        with torch.no_grad():
            print(GraphedForward(lambda x: x * 2)(torch.ones(2, device="hpu")).tolist())
        print("transformers.masking_utils" in sys.modules)
        """
    )
    assert result.stdout.splitlines() == ["[2.0, 2.0]", "False"]
