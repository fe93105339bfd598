"""`TransformersModule`: a Transformers model under Lightning, for training to prediction."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from typing_extensions import override

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules import optimization
from lightning_gaudi.modules.attention import build_masks_on_device
from lightning_gaudi.modules.batches import (
    BatchCheck,
    arguments_of,
    inputs_of,
    num_positions_of,
    num_tokens_of,
)
from lightning_gaudi.modules.evaluation import StageScores
from lightning_gaudi.modules.export import export
from lightning_gaudi.modules.heads import Pooling
from lightning_gaudi.modules.pretrained import (
    base_model,
    load_model,
    rebuildable_config,
    take_label_names,
)
from lightning_gaudi.modules.tasks import ProblemType, TaskName, find_task, make_head


class TransformersModule(LightningModule):
    """Trains, evaluates and predicts with a Transformers model.

    The model is the library's own, under ``model``: its forward is called without labels, so that
    it can be captured as a graph, and loss and metrics are computed from what it returns. They
    equal the library's, and leave rows and tokens out whose label is -100 (NaN for numbers). A
    model's own additions to the loss (the balancing of mixtures of experts) are not computed.

    A batch is a dict with the names of the forward's arguments. What the forward does not take is
    left out. Labels are those of Transformers: ``labels``, or ``start_positions`` and
    ``end_positions`` for question answering. Batches are checked before they move to the device.

    Logged are ``train/loss``, and for each of ``val`` and ``test`` ``loss`` and, by task,
    ``accuracy`` and ``f1`` (macro), ``mse`` and ``pearson``, ``exact_match`` and ``f1`` of spans,
    or ``perplexity`` and ``accuracy`` of tokens, over the whole data set. With several dataloaders
    those after the first have ``/dataloader_1`` and so on behind their names.

    Args:
        model: A directory that ``save_pretrained`` wrote, or a model's name on the Hugging Face
            hub; a config; a dict with ``model_type`` and those values of its config that are not
            the default, for a new model; or a model of the task's class. A model that is given is
            set to training mode, as a loaded one is.
        task: What the model does: ``"sequence-classification"``, ``"token-classification"``,
            ``"question-answering"``, ``"masked-lm"``, ``"causal-lm"``, ``"seq2seq-lm"``,
            ``"image-classification"`` or ``"feature-extraction"``, which predicts only.
        num_labels: How many labels the head tells apart; what the config says by default.
        label_names: Their names in order, kept in checkpoints and exports. By default those of a
            data module that has ``label_names``.
        problem_type: For texts and images: one class a row (the default), labels that may hold
            together, or numbers (the default for one label).
        learning_rate: The highest learning rate.
        weight_decay: For all parameters but norms and biases.
        warmup_steps: Optimizer steps until the learning rate is reached; a float is their fraction
            of the run.
        schedule: How it goes on from there: to 0 ``"linear"`` or as a ``"cosine"``,
            ``"constant"``, or another of Transformers' schedules.
        optimizer: ``"adamw"`` is ``torch.optim.AdamW``, ``"fused-adamw"`` the Gaudi software's,
            ``"auto"`` the latter on an HPU.
        betas: AdamW's.
        eps: AdamW's.
        label_smoothing: The share of a class's or token's loss in training that treats all alike;
            for tasks that predict one class a row or token.
        gradient_checkpointing: Whether to compute layers again in the backward, to save memory.
        pooling: For feature extraction: ``"mean"`` over tokens, the first (``"cls"``), or the
            ``"last"``; padding aside.
        normalize: For feature extraction: whether embeddings have length 1.
        max_answer_length: For question answering: the longest span to predict, in tokens.
        tokenizer: A tokenizer (or image processor), or its directory, to export with the model.
        model_arguments: Further ones for ``from_pretrained`` or ``from_config``, such as
            ``attn_implementation``. The default ``dtype`` is float32; the Trainer's precision
            decides on the rest.

    Raises:
        ConfigurationError: An argument cannot be, there is no such model, or it has no such head.
    """

    hpu_graph_targets = ("model",)

    def __init__(
        self,
        model: Any,
        task: TaskName = "sequence-classification",
        *,
        num_labels: int | None = None,
        label_names: list[str] | None = None,
        problem_type: ProblemType | None = None,
        learning_rate: float = 5e-5,
        weight_decay: float = 0.01,
        warmup_steps: int | float = 0,
        schedule: optimization.ScheduleName = "linear",
        optimizer: optimization.OptimizerName = "auto",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        label_smoothing: float = 0.0,
        gradient_checkpointing: bool = False,
        pooling: Pooling = "mean",
        normalize: bool = False,
        max_answer_length: int = 30,
        tokenizer: Any = None,
        model_arguments: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._task = find_task(task)
        optimization.check_settings(
            optimizer, schedule, learning_rate, weight_decay, warmup_steps, betas
        )
        self.model = load_model(
            model,
            self._task,
            num_labels=num_labels,
            label_names=label_names,
            problem_type=problem_type,
            arguments=model_arguments,
        ).train()
        # Not as it was given: a checkpoint has its weights, and must not need the directory again.
        self.save_hyperparameters(ignore=["model", "tokenizer", "model_arguments"])
        self._save_config()
        if isinstance(tokenizer, (str, os.PathLike)):
            self.save_hyperparameters({"tokenizer": os.fspath(tokenizer)})
        self.label_smoothing = label_smoothing
        self.learning_rate = learning_rate  # where Lightning's Tuner writes what it found
        self._tokenizer = tokenizer
        self._optimizer_name = optimizer
        self._optimizer_settings: dict[str, Any] = {
            "weight_decay": weight_decay,
            "betas": (betas[0], betas[1]),
            "eps": eps,
        }
        self._schedule: tuple[str, float] = (schedule, warmup_steps)
        build_masks_on_device(self.model)
        if gradient_checkpointing:
            self._checkpoint_gradients()
        self.head = make_head(
            self._task,
            base_model(self.model),
            problem_type=self.model.config.problem_type if self._task.has_problem_type else None,
            pooling=pooling,
            normalize=normalize,
            max_answer_length=max_answer_length,
            label_smoothing=label_smoothing,
        )
        self._scores = {stage: StageScores(self.head) for stage in ("val", "test")}
        self._accepted = arguments_of(base_model(self.model))
        self._check = BatchCheck(
            self.head,
            self._accepted,
            str(base_model(self.model).main_input_name),
            num_tokens_of(base_model(self.model)),
            num_positions_of(base_model(self.model)),
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle, in a process that may not know our attention yet."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        build_masks_on_device(self.model)

    def _save_config(self) -> None:
        config = rebuildable_config(base_model(self.model), self._task)
        if config is not None:
            self.save_hyperparameters({"model": config})

    @property
    def task(self) -> str:
        """The task's name."""
        return self._task.name

    @property
    def label_names(self) -> list[str]:
        """The names of labels, in order; empty where the task has none."""
        if not self._task.has_labels:
            return []
        return [str(name) for _, name in sorted(self.model.config.id2label.items())]

    def name_labels(self, labels: Any) -> Any:
        """The names of the ``labels`` that were predicted for one row.

        Args:
            labels: A row of what `predict_step` gave.

        Returns:
            A name; for labels that may hold together those that do; for tokens a list, with None
            for padding; or None where there are no names.
        """
        return self.head.names(torch.as_tensor(labels).tolist(), self.label_names)

    # --- steps ----------------------------------------------------------------------------------

    @override
    def forward(self, **batch: Any) -> Any:
        """Call the model with what its forward takes of a batch, without labels.

        Args:
            batch: Tensors by name; `inputs_of` says what is made of them.

        Returns:
            The model's output.

        Raises:
            ValueError: A sequence-to-sequence model has nothing to decode.
        """
        return self.model(**self._inputs_of(batch))

    def hpu_graph_arguments(self, target: str, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the model is called with for a batch, for `HPUGraphCallback(warmup="buckets")`."""
        return self._inputs_of(batch)

    def _inputs_of(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return inputs_of(
            batch, self.model, accepted=self._accepted, writes_text=self.task == "seq2seq-lm"
        )

    @override
    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """The loss of a batch, float32 []."""
        outputs = self(**batch)
        with self._outside_autocast():
            loss = self.head.loss(outputs, batch, self.label_smoothing).mean()
        num_rows = self._check.num_rows(batch)
        self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=num_rows)
        return loss

    @override
    def validation_step(
        self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Add a batch to the metrics."""
        self._evaluate("val", batch, dataloader_idx)

    @override
    def test_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the metrics."""
        self._evaluate("test", batch, dataloader_idx)

    @override
    def predict_step(
        self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Predict a batch of B rows.

        Returns:
            Tensors on the device, rows first, by task:

            - classes: ``logits`` and float32 ``probabilities`` [B, C], ``labels`` int64 [B];
            - labels that may hold together: the same, with ``labels`` int64 [B, C] of 0 and 1;
            - numbers: ``logits`` [B, C] and ``labels``, the same as [B] where there is one a row;
            - token classification: ``logits`` [B, T, C], ``labels`` int64 [B, T], -100 for padding;
            - question answering: ``logits`` [B, T, 2] of start and end, ``spans`` int64 [B, 2] (the
              answer's first and last token), ``scores`` float32 [B];
            - language models: ``logits`` [B, T, V], ``labels`` int64 [B, T], the likeliest tokens;
            - feature extraction: ``embeddings`` [B, H].
        """
        outputs = self(**batch)
        with self._outside_autocast():
            return self.head.predict(outputs, batch)

    def _evaluate(self, stage: str, batch: Mapping[str, Any], dataloader_idx: int) -> None:
        outputs = self(**batch)
        with self._outside_autocast():
            sums = self.head.loss(outputs, batch)
            self._add(stage, dataloader_idx, outputs, batch, sums)

    def _outside_autocast(self) -> torch.autocast:
        # Autocast of an HPU takes even means and log_softmax to bfloat16.
        return torch.autocast(self.device.type, enabled=False)

    # Out of what mode="compile" compiles: metrics count their updates, and are wrapped for that.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _add(
        self, stage: str, dataloader_idx: int, outputs: Any, batch: Mapping[str, Any], sums: Any
    ) -> None:
        scores = self._scores[stage].of(dataloader_idx, self.device)
        scores["loss"].update(sums)
        self.head.update(scores, outputs, batch)

    # --- stages ---------------------------------------------------------------------------------

    @override
    def setup(self, stage: str) -> None:
        """Check that the task has what the stage needs, and take the data module's label names.

        Raises:
            ConfigurationError: It has no loss, and is to be trained or evaluated; or the data has
                other labels.
        """
        names = getattr(getattr(self.trainer, "datamodule", None), "label_names", None)
        if self._task.has_labels and names and take_label_names(self.model.config, names):
            self._save_config()
        # True, and nothing to worry about: a datamodule seldom has that hook.
        warnings.filterwarnings(
            "ignore", "You have overridden `on_before_batch_transfer` in `LightningModule` but"
        )
        if stage != "predict" and not self.head.label_keys:
            raise ConfigurationError(
                f"task={self.task!r} has no loss, so it cannot {stage}. Use trainer.predict, or a "
                "task with labels."
            )

    @override
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Check a batch while it is on the host.

        Raises:
            TypeError: It is no dict.
            ValueError: Inputs or labels are missing, or a token or label cannot be.
        """
        stage = self.trainer.state.stage
        name = "training" if stage is None else str(stage.value)
        self._check(batch, needs_labels=not self.trainer.predicting, stage=name)
        return batch

    @override
    def on_validation_start(self) -> None:
        """Begin new metrics."""
        self._scores["val"].begin(len(self.trainer.num_val_batches), self.device)

    @override
    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_scores("val")

    @override
    def on_test_start(self) -> None:
        """Begin new metrics."""
        self._scores["test"].begin(len(self.trainer.num_test_batches), self.device)

    @override
    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        # Summed over ranks already: all have the same, whose mean that is.
        self.log_dict(dict(self._scores[stage].end(stage)), sync_dist=True)

    # --- training -------------------------------------------------------------------------------

    @override
    def configure_optimizers(self) -> Any:
        """AdamW, and the schedule, to be stepped after each optimizer step."""
        optimizer = optimization.make_optimizer(
            self.model,
            self._optimizer_name,
            on_hpu=self.trainer.strategy.root_device.type == "hpu",
            learning_rate=self.learning_rate,
            **self._optimizer_settings,
        )
        name, warmup_steps = self._schedule
        steps = self.trainer.estimated_stepping_batches
        schedule = optimization.make_schedule(optimizer, name, warmup_steps, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "learning_rate"},
        }

    def _checkpoint_gradients(self) -> None:
        model = base_model(self.model)
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise ConfigurationError(
                f"gradient_checkpointing=True: {type(model).__name__} does not support it."
            )
        arguments = {"use_reentrant": False}
        if hasattr(model, "activation_checkpointing_enable"):  # the newer name
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments)
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)
        # A hook for the reentrant kind, which would keep evaluation from being captured. Newer
        # versions add it, and all fail to remove one that is not there.
        if hasattr(model, "_require_grads_hook"):
            model.disable_input_require_grads()

    # --- export ---------------------------------------------------------------------------------

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write the model, and the tokenizer if there is one, as Transformers loads them.

        Args:
            directory: Where; made if it is not there. ``from_pretrained`` loads it.
        """
        export(self.model, directory, self._tokenizer)
