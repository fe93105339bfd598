"""The tasks: which class of Transformers has the head, and what the head adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules import heads

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

TaskName = Literal[
    "sequence-classification",
    "token-classification",
    "question-answering",
    "masked-lm",
    "causal-lm",
    "seq2seq-lm",
    "image-classification",
    "feature-extraction",
]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

_ROW_HEADS: dict[str, Callable[[int], heads.Head]] = {
    "single_label_classification": heads.ClassHead,
    "multi_label_classification": heads.MultilabelHead,
    "regression": heads.NumberHead,
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task.

    Attributes:
        name: Its name.
        auto_class: The class of Transformers that makes a model with its head.
        class_names: The name of the library's table of its classes by model type.
        has_labels: Whether its head tells labels apart, whose number is chosen.
        has_problem_type: Whether its rows may have one class, several labels, or numbers.
    """

    name: str
    auto_class: str
    class_names: str
    has_labels: bool = False
    has_problem_type: bool = False

    def classes(self) -> dict[str, set[str]]:
        """The names of the library's classes that have this head, by model type."""
        from transformers.models.auto import modeling_auto

        table: dict[str, Any] = getattr(modeling_auto, self.class_names)
        return {
            kind: {names} if isinstance(names, str) else set(names) for kind, names in table.items()
        }


_TABLE = "MODEL_FOR_{}_MAPPING_NAMES"
TASKS = {
    task.name: task
    for task in (
        Task(
            name="sequence-classification",
            auto_class="AutoModelForSequenceClassification",
            class_names=_TABLE.format("SEQUENCE_CLASSIFICATION"),
            has_labels=True,
            has_problem_type=True,
        ),
        Task(
            name="token-classification",
            auto_class="AutoModelForTokenClassification",
            class_names=_TABLE.format("TOKEN_CLASSIFICATION"),
            has_labels=True,
        ),
        Task(
            name="question-answering",
            auto_class="AutoModelForQuestionAnswering",
            class_names=_TABLE.format("QUESTION_ANSWERING"),
        ),
        Task(
            name="masked-lm",
            auto_class="AutoModelForMaskedLM",
            class_names=_TABLE.format("MASKED_LM"),
        ),
        Task(
            name="causal-lm",
            auto_class="AutoModelForCausalLM",
            class_names=_TABLE.format("CAUSAL_LM"),
        ),
        Task(
            name="seq2seq-lm",
            auto_class="AutoModelForSeq2SeqLM",
            class_names=_TABLE.format("SEQ_TO_SEQ_CAUSAL_LM"),
        ),
        Task(
            name="image-classification",
            auto_class="AutoModelForImageClassification",
            class_names=_TABLE.format("IMAGE_CLASSIFICATION"),
            has_labels=True,
            has_problem_type=True,
        ),
        Task(name="feature-extraction", auto_class="AutoModel", class_names="MODEL_MAPPING_NAMES"),
    )
}


def find_task(name: str) -> Task:
    """The task of a name.

    Raises:
        ConfigurationError: There is none.
    """
    if name not in TASKS:
        raise ConfigurationError(
            f"task must be one of {', '.join(map(repr, get_args(TaskName)))}, but it is {name!r}."
        )
    return TASKS[name]


def problem_type_of(task: Task, config: PretrainedConfig, asked: str | None) -> str | None:
    """What a row's labels are; None where the task leaves no choice.

    Raises:
        ConfigurationError: It is unknown, or the task has none.
    """
    if asked is not None and not task.has_problem_type:
        raise ConfigurationError(
            f"problem_type={asked!r} has no meaning for task={task.name!r}: leave it out."
        )
    if not task.has_problem_type:
        return None
    found = asked or config.problem_type
    if found is None:
        found = "regression" if config.num_labels == 1 else "single_label_classification"
    if found not in _ROW_HEADS:
        raise ConfigurationError(
            f"problem_type must be one of {', '.join(map(repr, _ROW_HEADS))}, but it is {found!r}."
        )
    num_labels = int(config.num_labels or 0)
    if found == "single_label_classification" and num_labels < 2:
        raise ConfigurationError(
            "problem_type='single_label_classification' needs num_labels of 2 or more, but it is "
            f"{num_labels}. For yes or no use num_labels=2; for a number "
            "problem_type='regression'."
        )
    return str(found)


def make_head(
    task: Task,
    model: PreTrainedModel,
    *,
    problem_type: str | None,
    pooling: heads.Pooling,
    normalize: bool,
    max_answer_length: int,
    label_smoothing: float = 0.0,
) -> heads.Head:
    """What the task adds to a model.

    Raises:
        ConfigurationError: A setting cannot be, or has no meaning for the task.
    """
    if pooling not in get_args(heads.Pooling):
        raise ConfigurationError(f"pooling must be 'mean', 'cls' or 'last', but it is {pooling!r}.")
    if not 0 <= label_smoothing < 1:
        raise ConfigurationError(
            f"label_smoothing must be 0 or more and less than 1, but it is {label_smoothing}."
        )
    if max_answer_length < 1:
        raise ConfigurationError(
            f"max_answer_length must be 1 or more, but it is {max_answer_length}."
        )
    head = _head_of(
        task,
        model,
        problem_type=problem_type,
        pooling=pooling,
        normalize=normalize,
        max_answer_length=max_answer_length,
    )
    is_pooled = isinstance(head, heads.EmbeddingHead)
    for name, value, has_meaning in (
        ("pooling", pooling, is_pooled or pooling == "mean"),
        ("normalize", normalize, is_pooled or not normalize),
        ("label_smoothing", label_smoothing, head.can_smooth or not label_smoothing),
    ):
        if not has_meaning:
            what = f" and problem_type={problem_type!r}" if problem_type else ""
            raise ConfigurationError(
                f"{name}={value!r} has no meaning for task={task.name!r}{what}: leave it out."
            )
    return head


def _head_of(
    task: Task,
    model: PreTrainedModel,
    *,
    problem_type: str | None,
    pooling: heads.Pooling,
    normalize: bool,
    max_answer_length: int,
) -> heads.Head:
    num_labels = int(model.config.num_labels or 0)
    if problem_type is not None:
        return _ROW_HEADS[problem_type](num_labels)
    if task.name == "token-classification":
        return heads.TokenClassHead(num_labels)
    if task.name == "question-answering":
        return heads.SpanHead(max_answer_length)
    if task.name == "feature-extraction":
        return heads.EmbeddingHead(pooling, normalize=normalize)
    kinds = {
        "masked-lm": heads.MaskedTokenHead,
        "causal-lm": heads.NextTokenHead,
        "seq2seq-lm": heads.Seq2SeqHead,
    }
    return kinds[task.name](_vocab_size(model))


def _vocab_size(model: PreTrainedModel) -> int:
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    size = getattr(output, "out_features", None) or model.config.vocab_size
    return int(size)
