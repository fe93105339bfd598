"""Makes a Transformers model of a path, a config, or a model, with the head of a task."""

from __future__ import annotations

import copy
import difflib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.tasks import TASKS, Task, problem_type_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def load_model(
    source: Any,
    task: Task,
    *,
    num_labels: int | None = None,
    label_names: Sequence[str] | None = None,
    problem_type: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """Make the model.

    Args:
        source: A directory of ``save_pretrained`` (or a model's name on the Hugging Face hub), a
            config, a dict with ``model_type`` and what of the config is not its default, or a
            model, which is used as it is.
        task: The task, whose head it is to have.
        num_labels: How many labels the head tells apart; what the config says by default.
        label_names: Their names, in order.
        problem_type: What a row's labels are.
        arguments: Further ones for ``from_pretrained`` or ``from_config``; ``dtype`` is float32
            where they do not say.

    Returns:
        The model, on the CPU unless it was given, with labels and problem type in its config.

    Raises:
        ConfigurationError: There is no such model, it has no such head, or the labels do not fit.
        ModuleNotFoundError: Transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ModuleNotFoundError(
            "TransformersModule needs transformers, which is not installed: "
            'pip install "lightning-gaudi[transformers]"',
            name="transformers",
        )
    num_labels = _number_of_labels(task, num_labels, label_names)
    if isinstance(source, torch.nn.Module):
        if arguments:
            raise ConfigurationError(
                f"model_arguments={dict(arguments)!r} are for a model that is made here, but model "
                f"is a {type(source).__name__} already: give them where you make it."
            )
        model: Any = source
        _check_class(model, task)
        if num_labels is not None and model.config.num_labels != num_labels:
            raise ConfigurationError(
                f"the model's head has {model.config.num_labels} labels, but "
                f"{'label_names' if label_names else 'num_labels'} says {num_labels}. Make the "
                f"model with num_labels={num_labels}."
            )
        _name_labels(model.config, label_names)
        _set_problem_type(model.config, task, problem_type)
        return model  # type: ignore[no-any-return]

    arguments = {"dtype": torch.float32, **(arguments or {})}
    config = _config_of(source, arguments)
    if num_labels is not None:
        config.num_labels = num_labels
    elif task.name == "question-answering":
        config.num_labels = 2  # logits for start and end
    _name_labels(config, label_names)
    _set_problem_type(config, task, problem_type)
    if config.model_type not in task.classes():
        raise ConfigurationError(_no_head(f"a {config.model_type!r} model", task, config))

    import transformers

    auto_class = getattr(transformers, task.auto_class)
    if isinstance(source, (str, os.PathLike)):
        found: PreTrainedModel = auto_class.from_pretrained(source, config=config, **arguments)
    else:
        found = auto_class.from_config(config, **arguments)
    return found


def rebuildable_config(model: PreTrainedModel, task: Task) -> dict[str, Any] | None:
    """A model's config as plain values, where `load_model` makes a model like it of that alone.

    Returns:
        The config; None where the model's class is not the library's own for its type and task.
    """
    if type(model).__name__ not in task.classes().get(model.config.model_type, set()):
        return None
    if not type(model).__module__.startswith("transformers."):
        return None
    config: dict[str, Any] = model.config.to_dict()
    return {**config, "model_type": model.config.model_type}


def base_model(model: Any) -> Any:
    """The Transformers model inside a wrapper that adds adapters; else the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


def _config_of(source: Any, arguments: Mapping[str, Any]) -> PretrainedConfig:
    from transformers import AutoConfig, PretrainedConfig

    if isinstance(source, PretrainedConfig):
        return copy.deepcopy(source)
    if isinstance(source, Mapping):
        return _config_of_dict(dict(source))
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigurationError(
            "model must be a path, a Transformers config, a dict with 'model_type', or a "
            f"Transformers model, but it is a {type(source).__name__}."
        )
    path = Path(source)
    if not path.exists() and _is_path(source):
        raise ConfigurationError(
            f"there is no model at {os.fspath(source)!r} (working directory {Path.cwd()}). It must "
            "be a directory that save_pretrained wrote."
        )
    own = {k: v for k, v in arguments.items() if k in ("gguf_file", "revision", "subfolder")}
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source, **own)
    except OSError as error:
        raise ConfigurationError(
            f"there is no model {os.fspath(source)!r}: it is no directory in {Path.cwd()} with a "
            f"config.json, and as a name on the Hugging Face hub it cannot be had: {error}"
        ) from error
    return config


def _is_path(source: str | os.PathLike[str]) -> bool:
    """Whether it can be a path only, and not a name such as ``owner/model``."""
    text = os.fspath(source)
    return not isinstance(source, str) or text.startswith((".", "/", "~")) or text.count("/") > 1


def _config_of_dict(values: dict[str, Any]) -> PretrainedConfig:
    from transformers import AutoConfig, GenerationConfig

    model_type = values.pop("model_type", None)
    if model_type is None:
        raise ConfigurationError(
            "model as a dict needs 'model_type', such as {'model_type': 'bert', 'hidden_size': "
            f"32}}, but it has {', '.join(map(repr, values)) or 'nothing'}."
        )
    try:
        default = AutoConfig.for_model(model_type)
    except ValueError as error:
        from transformers import CONFIG_MAPPING

        raise ConfigurationError(
            f"model_type {model_type!r} is none that this version of Transformers knows."
            + _did_you_mean(str(model_type), CONFIG_MAPPING.keys())
        ) from error
    if "transformers_version" not in values:  # else the library wrote it itself
        # Settings of generation may stand in any config.
        known = {**default.to_dict(), **GenerationConfig().to_dict()}  # type: ignore[no-untyped-call]
        unknown = [key for key in values if key not in known and not hasattr(default, key)]
        if unknown:
            raise ConfigurationError(
                f"a {model_type!r} config has no {unknown[0]!r}." + _did_you_mean(unknown[0], known)
            )
    values.pop("num_labels", None) if "id2label" in values else None
    return AutoConfig.for_model(model_type, **values)


def _did_you_mean(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=3)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def _number_of_labels(
    task: Task, num_labels: int | None, label_names: Sequence[str] | None
) -> int | None:
    if num_labels is None and label_names is None:
        return None
    if not task.has_labels:
        raise ConfigurationError(
            f"task={task.name!r} has no labels of its own: leave num_labels and label_names out."
        )
    if label_names is None:
        if num_labels is not None and num_labels < 1:
            raise ConfigurationError(f"num_labels must be 1 or more, but it is {num_labels}.")
        return num_labels
    if isinstance(label_names, str) or len(set(label_names)) != len(label_names):
        raise ConfigurationError(f"label_names must be distinct names, but it is {label_names!r}.")
    if num_labels is not None and num_labels != len(label_names):
        raise ConfigurationError(
            f"num_labels is {num_labels}, but label_names has {len(label_names)} names. Give one "
            "of them."
        )
    return len(label_names)


def _name_labels(config: PretrainedConfig, label_names: Sequence[str] | None) -> None:
    if label_names is not None:
        config.id2label = {i: str(name) for i, name in enumerate(label_names)}
        config.label2id = {name: i for i, name in config.id2label.items()}


def take_label_names(config: PretrainedConfig, names: Sequence[str]) -> bool:
    """Give a model the data's names of labels, where it has none of its own.

    Args:
        config: The model's config.
        names: The names that the data has, in the order of their numbers.

    Returns:
        Whether the config was changed.

    Raises:
        ConfigurationError: The model has another number of labels, or other names for them.
    """
    own = [str(name) for _, name in sorted((config.id2label or {}).items())]
    if own == list(names):
        return False
    has_names = own != [f"LABEL_{i}" for i in range(len(own))]
    if has_names or len(own) != len(names):
        raise ConfigurationError(
            f"the data's labels are {list(names)}, but the model's are {own}: what is number 0 for "
            f"one would be another for the other. Give TransformersModule label_names={list(names)}"
            f", or the data module label_names={own}."
        )
    _name_labels(config, names)
    return True


def _set_problem_type(config: PretrainedConfig, task: Task, asked: str | None) -> None:
    found = problem_type_of(task, config, asked)
    if found is not None:
        config.problem_type = found  # type: ignore[assignment]


def _check_class(model: Any, task: Task) -> None:
    """Check that a model has the head of the task, if it is one of the library's."""
    from transformers import PreTrainedModel

    inner = base_model(model)
    if not isinstance(inner, PreTrainedModel):
        raise ConfigurationError(
            "model must be a path, a Transformers config, a dict with 'model_type', or a "
            f"Transformers model, but it is a {type(model).__name__}, which is no PreTrainedModel."
        )
    names = {kind.__name__ for kind in type(inner).__mro__}
    fitting, others = set(), []
    for other in TASKS.values():
        classes = set().union(*other.classes().values())
        if names & classes:
            if other is task:
                fitting = names & classes
            else:
                others.append(other.name)
    if not fitting and others:
        raise ConfigurationError(
            f"{type(inner).__name__} has no head for task={task.name!r}, but for "
            f"{', '.join(map(repr, others))}. Use transformers.{task.auto_class}, or that task."
        )


def _no_head(what: str, task: Task, config: PretrainedConfig) -> str:
    having = [t.name for t in TASKS.values() if config.model_type in t.classes()]
    return (
        f"Transformers has no head for task={task.name!r} on {what}. It has heads for "
        f"{', '.join(map(repr, having)) or 'none of the tasks'}."
    )
