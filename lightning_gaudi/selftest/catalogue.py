"""The list of checks and questions, without what they do: reading it imports no torch.

A check passes or fails. A question is something that only a card can tell; its answer is recorded,
whatever it is, for it says where the emulated HPU and our assumptions differ from a card.
"""

from __future__ import annotations

from dataclasses import dataclass

LAZY = ("lazy",)
BOTH = ("lazy", "eager")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check or question.

    Attributes:
        name: What the report calls it, and the function's name.
        module: The module of this package that has the function.
        title: In words.
        modes: In which modes there is something to check.
        may_abort: Whether it can end the process on a card; it then gets a process of its own.
        is_quick: Whether ``--quick`` includes it.
        is_question: Whether the answer is recorded and not judged.
        limit_s: How long it may take, in seconds.
    """

    name: str
    module: str
    title: str
    modes: tuple[str, ...] = BOTH
    may_abort: bool = False
    is_quick: bool = False
    is_question: bool = False
    limit_s: float = 120.0


def _checks(module: str, *rows: tuple[str, str, str]) -> list[Check]:
    """Checks of a module from rows of name, title and letters.

    The letters: L lazy mode only, A may abort, Q quick, ? a question, S slow.
    """
    return [
        Check(
            name=name,
            module=module,
            title=title,
            modes=LAZY if "L" in letters else BOTH,
            may_abort="A" in letters,
            is_quick="Q" in letters,
            is_question="?" in letters,
            limit_s=300.0 if "S" in letters else 120.0,
        )
        for name, title, letters in rows
    ]


CATALOGUE: tuple[Check, ...] = (
    *_checks(
        "basics",
        ("device_and_mode", "the software loads in the mode, and a tensor lies on the card", "Q"),
        ("copies", "what is copied in comes out as it was, in each dtype", "Q"),
        ("arithmetic", "elementwise ops and a matrix product equal the CPU's", "Q"),
        ("one_compilation_then_a_hit", "the same graph again is found in the recipe cache", "LQ"),
        ("mark_step_breaks_the_graph", "a mark in between makes two graphs of one", "L"),
        ("a_new_shape_compiles", "another shape is another recipe", "L"),
        ("seeds", "the same seed gives the same numbers, and states come back", "Q"),
        ("autocast", "autocast gives each op the dtype of its list", "Q"),
        ("memory_figures", "the statistics follow a tensor's life", "Q"),
        ("streams_and_events", "events measure time, and streams leave values alone", ""),
    ),
    *_checks(
        "replays",
        ("replay_equals_eager", "a replay gives what running op by op gives", "LAQ"),
        ("replay_sees_weights_updated_in_place", "an optimizer's step reaches the graph", "LAQ"),
        ("replaced_weights_are_captured_anew", "load_state_dict(assign=True) drops graphs", "LA"),
        ("outputs_are_the_callers_own", "a later replay does not overwrite results", "LA"),
        ("dtype_is_part_of_the_key", "float32 and bfloat16 inputs get a graph each", "LA"),
        ("a_partial_batch_is_padded", "a batch with fewer rows uses a captured graph", "LA"),
        (
            "a_host_read_is_found",
            "a forward that reads a value is refused, and harms nothing",
            "LAQ",
        ),
        ("an_exception_ends_the_capture", "it reaches the user, and the next capture works", "LA"),
        ("eviction", "dropped graphs leave results alone, and are captured again", "LA"),
        ("without_the_tensor_cache", "replayV3 reads the caller's tensors", "LA"),
        ("replay_draws_anew", "each replay draws new numbers, by the seed", "LA"),
        ("random_calls", "any sequence of calls and weight updates equals eager mode", "LAS"),
        ("graph_memory", "what a graph keeps, with and without the tensor cache", "LA"),
    ),
    *_checks(
        "lightning_runs",
        ("fit_equals_the_cpu", "losses and weights of a training run", "QS"),
        ("fit_compiles_in_the_first_steps_only", "no compilation after the third step", "LS"),
        ("fit_in_bfloat16", "bf16-mixed trains", "S"),
        ("fit_by_replay", "training steps by replay equal those without", "LAS"),
        ("predict_by_replay", "predictions by replay equal the CPU's, ragged end included", "LAQS"),
        ("checkpoints", "a resumed run ends with the weights of an unbroken one", "S"),
    ),
    *_checks(
        "models",
        ("attention_masks", "BERT captured with a full mask is right with a padded one", "LAS"),
        ("generation", "greedy tokens are those of stock generate", "AS"),
        ("fused_adamw", "how far FusedAdamW is from AdamW", "?"),
    ),
    *_checks("many_cards", ("two_cards", "two cards with half the batch equal one", "S")),
    *_checks(
        "questions",
        ("default_mode", "the mode without PT_HPU_LAZY_MODE", "?S"),
        ("mark_step_result", "what mark_step returns", "?L"),
        ("int64_and_float64", "what becomes of 2**40 and of 1 + 2**-40", "?"),
        ("statistics", "all that memory_stats and the metrics say", "?"),
        ("item_in_a_capture", "what .item() does in a capture", "?LA"),
        ("cpu_op_in_a_capture", "what an op without a kernel does in a capture", "?LA"),
        ("capture_in_a_capture", "what a second capture_begin does", "?LA"),
        ("replay_in_a_capture", "what a replay does in a capture", "?LA"),
        ("addresses_of_outputs", "whether a replay keeps data_ptr", "?LA"),
        ("refill_under_inference_mode", "whether a static input takes an inference tensor", "?LA"),
        ("times", "host and device time of an op, a replay, a compilation", "?LA"),
    ),
)


def find(name: str) -> Check:
    """The check of a name."""
    return next(check for check in CATALOGUE if check.name == name)
