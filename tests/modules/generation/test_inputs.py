"""What a batch may be, texts and chats, where buckets come from; and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from modules.generation.models import (
    EOS,
    PAD,
    WORDS,
    batch_of,
    configs,
    ids_of,
    make_model,
    make_prompts,
    make_tokenizer,
    stock_tokens,
)
from modules.generation.runs import predict, rows_of, trainer
from torch.utils.data import DataLoader
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    MambaConfig,
    T5Config,
)

from lightning_gaudi import HPUGraphCallback
from lightning_gaudi.data.sampler import BucketBatchSampler
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.generation import TextGenerationModule

TEXTS = ["w5 w9 w4", "w20 w3 w11 w8 w7", "w6"]
TEMPLATE = (
    "{% for m in messages %}<bos> w3 {{ m['content'] }} w4{% endfor %}"
    "{% if add_generation_prompt %} w5{% endif %}"
)


def module_of(model=None, tokenizer=None, **options):
    options = {"max_new_tokens": 6, **options}
    return TextGenerationModule(model or make_model(), tokenizer, **options)


class Bucketed:
    def __init__(self, buckets):
        self.buckets = buckets

    def __call__(self, rows):
        return batch_of(rows)


# --- what a batch may be ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "batch",
    [
        TEXTS,
        tuple(TEXTS),
        [{"prompt": text} for text in TEXTS],
        {"prompt": TEXTS},
        {"input_ids": [ids_of(text) for text in TEXTS]},
        batch_of([ids_of(text) for text in TEXTS], "left", extra=3) | {"labels": None},
    ],
    ids=["texts", "tuple", "rows", "prompt", "lists", "tensors"],
)
def test_kinds_of_batches(batch):
    model = make_model()
    expected = stock_tokens(model, [ids_of(text) for text in TEXTS], 6)
    found = module_of(model, make_tokenizer()).predict_step(batch)
    assert found["token_ids"] == expected
    words = [[WORDS[token] for token in row if token > 2] for row in expected]
    assert found["text"] == [" ".join(row) for row in words]


def test_one_text():
    module = module_of(tokenizer=make_tokenizer())
    assert module.predict_step(TEXTS[0]) == module.predict_step(TEXTS[:1])


def test_texts_through_a_dataloader():
    model = make_model()
    module = module_of(model, make_tokenizer())
    loader = DataLoader([{"prompt": text} for text in TEXTS], batch_size=2)
    found = trainer(HPUGraphCallback()).predict(module, loader)
    assert rows_of(found) == stock_tokens(model, [ids_of(text) for text in TEXTS], 6)
    assert [len(batch["text"]) for batch in found] == [2, 1]


def test_chat():
    model = make_model()
    written = [ids_of(f"<bos> w3 {text} w4 w5") for text in TEXTS]
    module = module_of(model, make_tokenizer(TEMPLATE), chat=True)
    assert module.predict_step(TEXTS)["token_ids"] == stock_tokens(model, written, 6)


def test_no_text_without_a_tokenizer():
    assert list(module_of().predict_step(batch_of(make_prompts((3, 4))))) == ["token_ids"]


def test_a_module_can_be_copied_and_pickled():
    model, batch = make_model(), batch_of(make_prompts((3, 4)))
    module = module_of(model)
    expected = module.predict_step(batch)
    module.teardown("predict")
    for each in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert each.prefill.model is each.model
        assert each.predict_step(batch) == expected


def test_a_folder_makes_a_model(tmp_path):
    model, batch = make_model(), batch_of(make_prompts((3, 4)))
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    module = module_of(str(tmp_path), tmp_path)
    assert module.predict_step(batch)["token_ids"] == stock_tokens(model, make_prompts((3, 4)), 6)
    assert module.tokenizer.eos_token_id == EOS


# --- buckets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["collate_fn", "batch_sampler", "own"])
def test_where_buckets_come_from(place):
    model, prompts = make_model(), make_prompts((3, 5, 9, 4))
    collate = Bucketed([4, 9] if place == "collate_fn" else None)
    loader = DataLoader(prompts, batch_size=1, collate_fn=collate)
    if place == "batch_sampler":
        sampler = BucketBatchSampler(list(map(len, prompts)), [4, 9], 1)
        loader = DataLoader(prompts, batch_sampler=sampler, collate_fn=batch_of)
        prompts = [prompts[index] for batch in sampler for index in batch]
    module = module_of(model, buckets=[4, 9] if place == "own" else None)
    graphs = HPUGraphCallback()
    found = trainer(graphs).predict(module, loader)
    assert rows_of(found) == stock_tokens(model, prompts, 6)
    assert graphs.stats.per_target["prefill"].captures == 2
    assert graphs.stats.per_target["decode"].captures == 1


def test_powers_of_two_without_buckets():
    model, prompts = make_model(), make_prompts((17, 3, 33))
    module = module_of(model)
    rows, graphs = predict(module, [batch_of([prompt]) for prompt in prompts])
    assert rows == stock_tokens(model, prompts, 6)
    # 32, then 16 in the same cache, then 64 in a longer one.
    assert graphs.stats.per_target["prefill"].captures == 3
    assert graphs.stats.per_target["decode"].captures == 2


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of 1 or more, but it is 0"),
        ({"max_new_tokens": -3}, "max_new_tokens must be a whole number of 1 or more"),
        ({"eos_check_every": 0}, "eos_check_every must be a whole number of 1 or more"),
        ({"batch_size": 0}, "batch_size must be a whole number of 1 or more"),
        (
            {"do_sample": True, "temperature": 0.0},
            "temperature must be a number above 0.*do_sample",
        ),
        ({"do_sample": True, "temperature": -1}, "temperature must be a number above 0"),
        ({"do_sample": True, "top_p": 0.0}, "top_p must be above 0 and at most 1, but it is 0.0"),
        ({"do_sample": True, "top_p": 1.1}, "top_p must be above 0 and at most 1"),
        ({"do_sample": True, "top_k": 0}, "top_k must be a whole number of 1 or more"),
        ({"do_sample": "yes"}, "do_sample must be True or False"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"buckets": []}, "buckets must be one or more lengths"),
        ({"buckets": 8}, "buckets must be one or more lengths.*but it is 8"),
        ({"buckets": [8, 0]}, "buckets must be one or more lengths"),
        (
            {"buckets": [100], "max_new_tokens": 29},
            "100 tokens.*129 positions.*has 128 .max_position",
        ),
        ({"eos_token_id": 24}, "eos_token_id must be a token id from 0 to 23.*but it is 24"),
        ({"pad_token_id": -1}, "pad_token_id must be a token id from 0 to 23"),
        ({"chat": True}, "chat=True needs a tokenizer"),
        ({"chat": True, "tokenizer": make_tokenizer()}, "chat=True needs a chat template"),
        ({"num_beams": 4}, "num_beams=4 is not supported.*Leave num_beams out"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2 is not supported"),
        ({"assistant_model": "gpt2"}, "assistant_model='gpt2' is not supported"),
        ({"min_p": 0.1}, "min_p=0.1 is not supported"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_bad_options(options, text):
    with pytest.raises(ConfigurationError, match=text):
        module_of(**options)


def test_options_without_effect():
    module_of(num_beams=1, repetition_penalty=1.0, assistant_model=None)
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_beam'"):
        module_of(num_beam=4)
    with pytest.warns(UserWarning, match="temperature, top_k means nothing without do_sample=True"):
        module_of(temperature=0.5, top_k=3)


@pytest.mark.parametrize(
    ("name", "value"), [("repetition_penalty", 1.1), ("num_beams", 2), ("suppress_tokens", [4])]
)
def test_a_generation_config_that_asks_for_more(name, value):
    model = make_model()
    setattr(model.generation_config, name, value)
    with pytest.raises(ConfigurationError, match=rf"generation config asks for {name}=.*go on"):
        module_of(model)


def test_a_generation_config_that_samples_is_the_callers_matter():
    model = make_model()
    for name, value in {"do_sample": True, "temperature": 0.6, "min_p": 0.1}.items():
        setattr(model.generation_config, name, value)
    prompts = make_prompts((5, 3))
    expected = stock_tokens(make_model(), prompts, 6)
    assert module_of(model).predict_step(batch_of(prompts))["token_ids"] == expected
    with pytest.raises(ConfigurationError, match=r"min_p=0\.1"):
        module_of(model, do_sample=True)


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (
            batch_of(make_prompts((3, 9))),
            "a prompt of 9 tokens is longer than the largest bucket, 8",
        ),
        ({"input_ids": torch.ones(2, 3), "attention_mask": torch.zeros(2, 3)}, "row 0 is empty"),
        ({"input_ids": [[3], []]}, "the prompt of row 1 is empty"),
        ({"input_ids": [[3, 99]]}, "row 0 has the token 99, but the model knows 0 to 23"),
        ({"input_ids": torch.tensor([[3, PAD]])}, "row 0 of input_ids begins or ends with the pad"),
        ({"input_ids": [[3, 4]], "attention_mask": [[1]]}, "of the same shape"),
        ({"input_ids": [[3], [4]], "seed": [1]}, "seed must have one .* 2 rows, but it has 1"),
        (
            {"input_ids": [[3], [4]], "seed": 7},
            r"seed must have one .* 2 rows, but it has 1: \[7\]",
        ),
        ({"input_ids": [[3]], "seed": [0.5]}, r"seed must have one whole number.*\[0.5\]"),
        ({"input_ids": torch.tensor([3])}, "input_ids must be of shape .* it has fewer dim"),
        ({"input_ids": torch.tensor([[3.5]])}, "must be of shape .* whole numbers, but .* 3.5"),
        ({"input_ids": torch.tensor([[[3]]])}, r"must be of shape .* whole numbers, but .* \[3\]"),
        ({"labels": [3]}, r"a batch must be a mapping with input_ids.*has \['labels'\]"),
        (["w3"], "a batch of texts needs a tokenizer"),
        ([{"prompt": "w3"}, {"text": "w3"}], "have other names"),
        (torch.tensor([[3]]), "it is of type Tensor"),
    ],
    ids=str,
)
def test_bad_batches(batch, text):
    with pytest.raises(ConfigurationError, match=text):
        module_of(buckets=[4, 8]).predict_step(batch)


@pytest.mark.parametrize("batch", [[{"prompt": None}], {"prompt": ["w3", None]}], ids=str)
def test_a_prompt_that_is_no_text(batch):
    with pytest.raises(ConfigurationError, match=r"a batch must be .* its prompts are NoneType"):
        module_of(tokenizer=make_tokenizer()).predict_step(batch)


def test_an_empty_text():
    with pytest.raises(ConfigurationError, match="the prompt of row 1 is empty"):
        module_of(tokenizer=make_tokenizer()).predict_step(["w3", ""])


def test_a_prompt_beyond_the_positions():
    with pytest.raises(ConfigurationError, match=r"up to 123 tokens.*129 pos.*has 128 \(max_pos"):
        module_of().predict_step(batch_of(make_prompts((123,))))


@pytest.mark.parametrize("length", [70, 122])
def test_a_power_of_two_beyond_the_positions(length):
    """128 and new tokens would be too many, but the prompt itself has room."""
    model, prompts = make_model(), make_prompts((length, 3))
    found = module_of(model).predict_step(batch_of(prompts))
    assert found["token_ids"] == stock_tokens(model, prompts, 6)


@pytest.mark.parametrize(
    "batch",
    [[], {"prompt": []}, {"input_ids": []}, {key: v[:0] for key, v in batch_of([[3]]).items()}],
    ids=["list", "prompt", "lists", "tensors"],
)
def test_no_rows(batch):
    module = module_of(tokenizer=make_tokenizer())
    assert module.predict_step(batch) == {"token_ids": [], "text": []}


def test_pad_token():
    def model_without(eos=EOS):
        model = make_model()
        model.generation_config.pad_token_id = model.config.pad_token_id = None
        model.generation_config.eos_token_id = model.config.eos_token_id = eos
        return model

    assert module_of(model_without()).pad_token_id == EOS
    assert module_of(model_without(), make_tokenizer()).pad_token_id == PAD
    with pytest.raises(ConfigurationError, match=r"there is no pad token.*Pass pad_token_id"):
        module_of(model_without(eos=None))
    prompts = make_prompts((5, 3))
    expected = stock_tokens(make_model(), prompts, 6)
    for pad in (EOS, 9):
        found = module_of(model_without(), pad_token_id=pad).predict_step(batch_of(prompts))
        assert found["token_ids"] == expected


@pytest.mark.parametrize(
    ("run", "step"),
    [("fit", "training_step"), ("validate", "validation_step"), ("test", "test_step")],
)
def test_only_prediction(run, step):
    loader = DataLoader([batch_of([[3, 4]])], batch_size=None)
    with pytest.raises(ConfigurationError, match=f"only predicts: it has no {step}.*'causal-lm'"):
        getattr(trainer(max_epochs=1), run)(module_of(), loader)


def test_a_subclass_that_trains():
    class Training(TextGenerationModule):
        def training_step(self, batch, batch_idx):
            return self.model(**batch, labels=batch["input_ids"]).loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Training(make_model(), max_new_tokens=6).train()
    before, prompts = module.model.lm_head.weight.detach().clone(), make_prompts((3, 4))
    loader = DataLoader([batch_of(prompts)], batch_size=None)
    trainer(max_epochs=1).fit(module, loader)
    assert not torch.equal(module.model.lm_head.weight, before)
    assert predict(module, [batch_of(prompts)])[0] == stock_tokens(module.model, prompts, 6)


def test_models_that_cannot():
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 24}
    bert = BertConfig(**small, intermediate_size=8, pad_token_id=PAD, eos_token_id=EOS)
    with pytest.raises(ConfigurationError, match="BertModel cannot generate: it has no language"):
        module_of(AutoModel.from_config(bert))
    module = module_of(AutoModelForCausalLM.from_config(bert))
    with pytest.raises(ConfigurationError, match=r"BertLMHeadModel .* keeps none.*is_decoder=True"):
        module.predict_step(batch_of([[3, 4]]))
    t5 = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=24)
    with pytest.raises(ConfigurationError, match="T5Config is that of an encoder-decoder model"):
        module_of(t5)
    mamba = MambaConfig(
        vocab_size=24, hidden_size=8, state_size=4, num_hidden_layers=1, pad_token_id=PAD,
        eos_token_id=EOS,
    )  # fmt: skip
    module = module_of(AutoModelForCausalLM.from_config(mamba))
    with pytest.raises(ConfigurationError, match=r"MambaForCausalLM cannot .* recurrent"):
        module.predict_step(batch_of([[3, 4]]))


def test_a_bert_decoder_can():
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        vocab_size=24, is_decoder=True, pad_token_id=PAD, eos_token_id=EOS, initializer_range=0.8,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    prompts = make_prompts((5, 3, 7))
    module = module_of(model, max_new_tokens=12)
    rows, graphs = predict(module, [batch_of(prompts)])
    assert rows == stock_tokens(model, prompts, 12)
    assert graphs.stats.captures == 2


def test_configs_are_left_alone():
    config = configs()["mistral"]
    module = module_of(make_model("mistral"))
    module.predict_step(batch_of(make_prompts((3, 4))))
    assert module.model.config.sliding_window == config.sliding_window
