"""What is generated: lengths, greedy or sampled, which tokens end a row; all of it checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from lightning_gaudi.errors import ConfigurationError

# Of Transformers' generation arguments, those that would change the tokens and that are not done
# here, each with the values that change nothing. What only asks for more outputs is not among them.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (None,),
    "begin_suppress_tokens": (None,),
    "constraints": (None,),
    "diversity_penalty": (None, 0.0),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1.0),
    "max_time": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "num_beam_groups": (None, 1),
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "penalty_alpha": (None, 0.0),
    "prompt_lookup_num_tokens": (None,),
    "repetition_penalty": (None, 1.0),
    "sequence_bias": (None,),
    "stop_strings": (None,),
    "suppress_tokens": (None,),
    "token_healing": (None, False),
    "watermarking_config": (None,),
}
# These matter to sampling only.
_UNSUPPORTED_IN_SAMPLING: dict[str, tuple[Any, ...]] = {
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "min_p": (None, 0.0),
    "top_h": (None,),
    "typical_p": (None, 1.0),
}
# Arguments of ``generate`` that are in no GenerationConfig.
_UNSUPPORTED_ARGUMENTS = frozenset(
    {
        "assistant_model",
        "assistant_tokenizer",
        "custom_generate",
        "generation_config",
        "logits_processor",
        "prefix_allowed_tokens_fn",
        "stopping_criteria",
        "streamer",
    }
)


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How tokens are chosen, and when a row ends.

    Attributes:
        max_new_tokens: The most new tokens of a row.
        do_sample: Whether tokens are drawn; else the most likely one is taken.
        temperature: Logits are divided by it; sampling only.
        top_k: Only so many of the most likely tokens can be drawn; None for all.
        top_p: Only the most likely tokens whose probabilities make up this much can be drawn; None
            for all.
        seed: Of the random numbers.
        eos_check_every: After how many tokens the host looks whether all rows have ended.

    Raises:
        ConfigurationError: One has a value that it cannot have.
    """

    max_new_tokens: int
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    eos_check_every: int = 8

    def __post_init__(self) -> None:
        check_count("max_new_tokens", self.max_new_tokens)
        check_count("eos_check_every", self.eos_check_every)
        if self.top_k is not None:
            check_count("top_k", self.top_k)
        if not isinstance(self.do_sample, bool):
            raise ConfigurationError(
                f"do_sample must be True or False, but it is {self.do_sample!r}."
            )
        if not _is_number(self.temperature) or not 0 < self.temperature < float("inf"):
            raise ConfigurationError(
                f"temperature must be a number above 0, but it is {self.temperature!r}. For the "
                "most likely token each time pass do_sample=False."
            )
        if self.top_p is not None and (not _is_number(self.top_p) or not 0 < self.top_p <= 1):
            raise ConfigurationError(
                f"top_p must be above 0 and at most 1, but it is {self.top_p!r}. None leaves all "
                "tokens in."
            )
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ConfigurationError(f"seed must be a whole number, but it is {self.seed!r}.")

    def ignored(self) -> list[str]:
        """Names of settings that were changed though they mean nothing without sampling."""
        if self.do_sample:
            return []
        given = {"temperature": self.temperature != 1.0, "top_k": self.top_k, "top_p": self.top_p}
        return [name for name, value in given.items() if value]


def check_count(name: str, value: Any) -> None:
    """Check a number of things.

    Raises:
        ConfigurationError: It is no whole number of 1 or more.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(
            f"{name} must be a whole number of 1 or more, but it is {value!r}."
        )


def check_arguments(arguments: dict[str, Any]) -> None:
    """Refuse arguments of ``generate`` that are not done here.

    Args:
        arguments: Names and values.

    Raises:
        ConfigurationError: One would change the tokens.
        TypeError: One is no argument of ``generate`` either.
    """
    for name, value in arguments.items():
        neutral = {**_UNSUPPORTED, **_UNSUPPORTED_IN_SAMPLING}.get(name)
        if neutral is None and name not in _UNSUPPORTED_ARGUMENTS:
            raise TypeError(f"TextGenerationModule got an unexpected keyword argument {name!r}.")
        if value is not None and value not in (neutral or ()):
            raise ConfigurationError(
                f"{name}={value!r} is not supported: TextGenerationModule generates greedily or "
                "samples with temperature, top_k and top_p, and does nothing else to the logits. "
                f"Leave {name} out."
            )


def check_generation_config(config: GenerationConfig | None, *, do_sample: bool) -> None:
    """Refuse a model whose own generation config asks for what is not done here.

    Sampling, its temperature, `top_k` and `top_p`, and lengths are the module's arguments, whatever
    the config says of them.

    Raises:
        ConfigurationError: A field would change the tokens.
    """
    fields = {**_UNSUPPORTED, **(_UNSUPPORTED_IN_SAMPLING if do_sample else {})}
    for name, neutral in fields.items():
        value = getattr(config, name, None)
        if value not in neutral:
            raise ConfigurationError(
                f"the model's generation config asks for {name}={value!r}, which is not supported, "
                "and leaving it out would give other tokens than stock generate. To go on without: "
                f"model.generation_config.{name} = {neutral[-1]!r}"
            )


def find_eos_token_ids(
    model: PreTrainedModel, given: int | Iterable[int] | None
) -> tuple[int, ...]:
    """The tokens that end a row: as given, else as the model's generation config or config say.

    Raises:
        ConfigurationError: One is no token id.
    """
    if given is None:
        given = _first_known("eos_token_id", _configs(model))
    if given is None:
        return ()
    ids = (given,) if isinstance(given, int) else tuple(given)
    return tuple(dict.fromkeys(_token_id("eos_token_id", each, model) for each in ids))


def find_pad_token_id(
    model: PreTrainedModel, tokenizer: Any, given: int | None, eos: tuple[int, ...]
) -> int:
    """What fills prompts up to a bucket: as given, else the model's, the tokenizer's, or EOS.

    Attention never sees it, so that EOS serves as well as any; stock ``generate`` takes it too.

    Raises:
        ConfigurationError: There is none of them, or it is no token id.
    """
    if given is None:
        given = _first_known("pad_token_id", [*_configs(model), tokenizer])
    if given is None and eos:
        given = eos[0]
    if given is None:
        raise ConfigurationError(
            f"there is no pad token: neither {type(model).__name__}'s generation config and config "
            "nor a tokenizer names one, nor is there an EOS token to pad with. Pass "
            "pad_token_id=... (any token will do: attention never sees it)."
        )
    return _token_id("pad_token_id", given, model)


def vocab_size(model: PreTrainedModel) -> int:
    """How many token ids the model knows."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def most_positions(model: PreTrainedModel) -> tuple[int | None, str]:
    """How many positions the model can have, None for any, and which part of its config says so."""
    config = model.config.get_text_config(decoder=True)
    known = getattr(config, "max_position_embeddings", None)
    found = (known if isinstance(known, int) else None), "max_position_embeddings"
    # With these, keys of a text that grows beyond its original length have to be made anew. Before
    # Transformers 5 they were in `rope_scaling`.
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if "longrope" in (rope.get("rope_type"), rope.get("type")):
        name = "original_max_position_embeddings"
        original = rope.get(name, getattr(config, name, None))
        if isinstance(original, int):
            return original, f"{name} of its longrope"
    return found


def _configs(model: PreTrainedModel) -> list[Any]:
    return [model.generation_config, model.config.get_text_config(decoder=True)]


def _first_known(name: str, places: Iterable[Any]) -> Any:
    found = (getattr(place, name, None) for place in places)
    return next((value for value in found if value is not None), None)


def _token_id(name: str, value: Any, model: PreTrainedModel) -> int:
    size = vocab_size(model)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < size:
        raise ConfigurationError(
            f"{name} must be a token id from 0 to {size - 1}, for so many has "
            f"{type(model).__name__}, but it is {value!r}."
        )
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
