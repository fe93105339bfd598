"""`DiffusionSampler`: images from any pipeline of Diffusers through ``trainer.predict``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor
from typing_extensions import override

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.diffusion.assembly import assemble, facts_of, module_parts
from lightning_gaudi.modules.diffusion.device_inputs import device_inputs
from lightning_gaudi.modules.diffusion.host_reads import HostReadCounter
from lightning_gaudi.modules.diffusion.options import SamplingOptions, check_size, make_scheduler
from lightning_gaudi.modules.diffusion.prompts import CutPrompts
from lightning_gaudi.modules.diffusion.requests import (
    ImageRequest,
    batches_of,
    collated,
    filled,
    requests_of,
    rows_of,
)
from lightning_gaudi.modules.diffusion.schedule import on_host
from lightning_gaudi.modules.diffusion.throughput import SamplingStats
from lightning_gaudi.runtime import device as hpu

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin

OutputType = Literal["pil", "np", "pt", "latent"]


class DiffusionSampler(LightningModule):
    """Samples images with a stock pipeline of Diffusers.

    The pipeline's own ``__call__`` runs, whatever its family: text to image, image to image,
    inpainting, class-conditional or unconditional. Its denoiser and the decoder of its VAE are
    what `HPUGraphCallback` captures (`hpu_graph_targets`), each once for all steps and batches.
    Timesteps and the scheduler's tables stay on the host, so that no step reads the device; the
    denoiser gets the timestep as a device tensor. The lazy graph breaks after each step.

    Image i of the whole data set is made with a CPU generator seeded ``seed + i``, where i is the
    row's index times `num_images_per_prompt` plus the number of the image. It equals the stock
    pipeline's, called with a list of such generators, whatever the batch size, position or rank.
    (A pipeline that hands its scheduler no generators, such as DiT, does so for schedulers without
    noise of their own.) Rows carry their index in ``index``, else Lightning's samplers tell it.

    Rows are strings, dicts or columns. A field that is an argument of the pipeline goes to it: what
    differs by image (``prompt``, ``negative_prompt``, ``image``, ``mask_image``, ``class_labels``
    ...) as a list, numbers (``guidance_scale``, ``num_inference_steps``, ``height``, ``strength``
    ...) as settings; images with equal settings form batches of their own. ``seed`` is the seed of
    the row's first image. All other fields are handed on in the prediction.

    Args:
        pipeline: A folder that ``save_pretrained`` wrote, a loaded pipeline, or its parts by name.
        num_inference_steps: Denoising steps.
        guidance_scale: Weight of the guidance; None takes the pipeline's own default.
        num_images_per_prompt: Images of each row, one after the other in the prediction.
        batch_size: Images that are sampled together. The last batch of a step is filled up to it
            and the fillers are dropped, so make the dataloader's batches times
            `num_images_per_prompt` a multiple of it.
        eta: Noise of DDIM, from 0 to 1.
        seed: Image i has the seed ``seed + i``; or a seed for each image of the data set.
        height: Height in pixels; None takes the pipeline's own.
        width: Width in pixels; None takes the pipeline's own.
        output_type: ``"pil"``, ``"np"`` (arrays of height, width, channels), ``"pt"`` (tensors of
            channels, height, width) or ``"latent"``.
        negative_prompt: For rows that bring none.
        scheduler: What to put in place of the pipeline's: a scheduler, or the name of one of
            Diffusers' classes, which is then made from the configuration of the pipeline's.
        pipeline_class: The pipeline to build of parts or to load as; None finds it out.
        show_steps: Whether a bar shows the denoising steps; None shows it below Lightning's own
            bar, where that is there.
        call_options: Further arguments of the pipeline, the same for all images: ``strength``,
            ``cross_attention_kwargs``, ``callback_on_step_end`` ...

    Attributes:
        pipeline: The pipeline. Its modules are submodules of this one under the pipeline's names.
        stats: Counts, and images per second: of real images, after the first batch, the device
            waited for. Logged when prediction ends.

    Raises:
        ConfigurationError: An argument has a value that it cannot have, or the pipeline has no
            denoiser or does not take an argument.
    """

    def __init__(
        self,
        pipeline: str | Path | DiffusionPipeline | Mapping[str, Any],
        *,
        num_inference_steps: int = 50,
        guidance_scale: float | None = 7.5,
        num_images_per_prompt: int = 1,
        batch_size: int = 1,
        eta: float = 0.0,
        seed: int | Sequence[int] = 0,
        height: int | None = None,
        width: int | None = None,
        output_type: OutputType = "pil",
        negative_prompt: str | None = None,
        scheduler: str | SchedulerMixin | None = None,
        pipeline_class: str | type | None = None,
        show_steps: bool | None = None,
        call_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.options = SamplingOptions(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            batch_size=batch_size,
            eta=eta,
            seed=seed,
            height=height,
            width=width,
            output_type=output_type,
            negative_prompt=negative_prompt,
            call_options=dict(call_options or {}),
        )
        self.show_steps = show_steps
        # Of any class: Diffusers' base class declares neither its parts nor `__call__`.
        self.pipeline: Any = assemble(pipeline, pipeline_class)
        self._facts = facts_of(self.pipeline)
        self.options.check_against(self._facts)
        if scheduler is not None:
            self.pipeline.scheduler = make_scheduler(scheduler, self.pipeline)
        for name, part in module_parts(self.pipeline).items():
            self.add_module(name, part)
        self.stats = SamplingStats()
        self._cut_prompts = CutPrompts(self.pipeline, self.options.max_sequence_length(self._facts))
        self._bar_options: dict[str, Any] | None = None
        self._reads_told = False
        self._rows_seen = 0

    @property
    def hpu_graph_targets(self) -> list[str]:
        """What `HPUGraphCallback` captures: the denoiser and, where it is called, the decoder."""
        targets = [self._facts.denoiser]
        if self._facts.decoder is not None and self.options.output_type != "latent":
            targets.append(self._facts.decoder)
        return targets

    # --- Lightning ------------------------------------------------------------------------------

    @override
    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Leave the batch on the host: the pipeline looks at it there and moves what it needs."""
        return batch

    @override
    def on_predict_start(self) -> None:
        """Count rows from 0."""
        self._rows_seen = 0

    @override
    def on_predict_end(self) -> None:
        """Wait for the device, and log what was done and how fast."""
        self._wait()
        self.stats.stop_timing()
        for logger in self.trainer.loggers:
            logger.log_metrics({f"sampling/{n}": v for n, v in self.stats.as_dict().items()})

    @override
    def predict_step(
        self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Sample the images of a batch.

        Args:
            batch: A list of prompts, a list of dicts, a dict of columns, or whole numbers for a
                pipeline that takes no condition.
            batch_idx: The batch's place in its dataloader.
            dataloader_idx: The dataloader's place.

        Returns:
            A dict of lists or tensors of one length, a row's images one after the other: ``images``
            (a list of PIL images or arrays, or a tensor (B, channels, height, width)), ``index``
            (the row's), ``image_number`` (from 0 in each row), ``seed``, ``settings`` (what the
            pipeline was called with) and the rows' own fields, such as ``prompt``.

        Raises:
            ConfigurationError: The batch is not what the pipeline can be called with.
        """
        rows = [self._with_defaults(row) for row in rows_of(batch)]
        indices = self._indices(rows, batch_idx, dataloader_idx)
        requests = requests_of(
            rows,
            indices,
            self._facts,
            num_images=self.options.num_images_per_prompt,
            seed=self.options.seed,
        )
        for request in requests:
            check_size(request.settings, self._facts)
        images: list[Any] = [None] * len(requests)
        for places in batches_of(requests, self.options.batch_size):
            batch_images = self._sample([requests[place] for place in places])
            for place, image in zip(places, batch_images, strict=False):
                images[place] = image
        return self._prediction(requests, images)

    # --- one batch ------------------------------------------------------------------------------

    def _sample(self, requests: list[ImageRequest]) -> Sequence[Any]:
        """Images of requests with the same settings; rows first."""
        pipeline, options = self.pipeline, self.options
        whole = filled(requests, options.batch_size)
        arguments = {**options.arguments_for(self._facts, len(whole)), **collated(whole)}
        for name in ("prompt", "negative_prompt"):
            if isinstance(arguments.get(name), list):
                self._cut_prompts.look_at(arguments[name])
        counter = None if self._reads_told else HostReadCounter()
        self._configure_bar()
        with ExitStack() as stack:
            stack.enter_context(device_inputs(getattr(pipeline, self._facts.denoiser)))
            steps = stack.enter_context(on_host(pipeline.scheduler, counter))
            result = pipeline(**arguments)
        if counter is not None:
            self._tell_reads(counter, steps.num_steps)
        images: Sequence[Any] = result.images
        self.stats.images += len(requests)
        self.stats.filler_images += len(whole) - len(requests)
        self.stats.batches += 1
        self.stats.denoising_steps += steps.num_steps
        if self.stats.batches == 1:
            self._wait()
            self.stats.start_timing()
        return images[: len(requests)]

    def _prediction(self, requests: list[ImageRequest], images: list[Any]) -> dict[str, Any]:
        is_tensor = all(isinstance(image, Tensor) for image in images)
        has_one_shape = is_tensor and len({image.shape for image in images}) == 1
        prediction: dict[str, Any] = {
            "images": torch.stack(images) if has_one_shape else images,
            "index": [request.index for request in requests],
            "image_number": [request.number for request in requests],
            "seed": [request.seed for request in requests],
            "settings": [self._settings_of(request) for request in requests],
        }
        if self._facts.condition == "prompt":
            prediction["prompt"] = [request.inputs.get("prompt") for request in requests]
        for name in sorted({name for request in requests for name in request.extra}):
            prediction.setdefault(name, [request.extra.get(name) for request in requests])
        return prediction

    def _settings_of(self, request: ImageRequest) -> dict[str, Any]:
        """Numbers and texts that tell how an image was made, for its metadata."""
        arguments = {**self.options.arguments_for(self._facts, 1), **request.settings}
        arguments.update({n: v for n, v in request.inputs.items() if n != "prompt"})
        settings = {
            name: value
            for name, value in arguments.items()
            if isinstance(value, (bool, int, float, str))
            and name not in ("output_type", "num_images_per_prompt", "batch_size")
        }
        settings["pipeline"] = self._facts.name
        settings["scheduler"] = type(self.pipeline.scheduler).__name__
        return settings

    # --- rows -----------------------------------------------------------------------------------

    def _with_defaults(self, row: dict[str, Any]) -> dict[str, Any]:
        negative = self.options.negative_prompt
        if negative is None or row.get("negative_prompt") is not None:
            return row
        return {**row, "negative_prompt": negative}

    def _indices(
        self, rows: list[dict[str, Any]], batch_idx: int, dataloader_idx: int
    ) -> list[int]:
        """Each row's place in the data set."""
        first, self._rows_seen = self._rows_seen, self._rows_seen + len(rows)
        if all("index" in row for row in rows):
            return [int(row["index"]) for row in rows]
        trainer = self._attached_trainer()
        if trainer is None:
            return list(range(first, first + len(rows)))
        seen = _seen_indices(trainer, batch_idx, dataloader_idx)
        if seen is not None and len(seen) == len(rows):
            return [int(index) for index in seen]
        if trainer.world_size > 1:
            raise ConfigurationError(
                "seeds follow a row's index in the data set, and with several processes a row must "
                "tell it: neither has the batch a column 'index' nor does the dataloader's batch "
                "sampler say it. Add 'index' to each row."
            )
        return list(range(first, first + len(rows)))

    def _attached_trainer(self) -> Trainer | None:
        return self._trainer

    # --- device and terminal --------------------------------------------------------------------

    def _wait(self) -> None:
        if self.device.type == "hpu":
            hpu.synchronize()

    def _tell_reads(self, counter: HostReadCounter, num_steps: int) -> None:
        self._reads_told = True
        self.stats.scheduler_host_reads = counter.num_reads
        counter.warn(type(self.pipeline.scheduler).__name__, num_steps)

    def _configure_bar(self) -> None:
        """A bar over denoising steps below Lightning's own, or none."""
        if self._bar_options is None:
            # What the user has set; there is no public way to ask.
            self._bar_options = dict(getattr(self.pipeline, "_progress_bar_config", None) or {})
        trainer = self._attached_trainer()
        is_shown = self.show_steps
        position = 0
        if trainer is not None:
            bar = trainer.progress_bar_callback
            has_bar = isinstance(bar, TQDMProgressBar) and bar.is_enabled
            position = int(has_bar)
            # A bar of another kind redraws the terminal by itself and would be garbled.
            is_shown = (has_bar if is_shown is None else is_shown) and trainer.is_global_zero
        ours = {
            "disable": not is_shown,
            "position": position,
            "leave": False,
            "desc": "Denoising",
        }
        self.pipeline.set_progress_bar_config(**{**ours, **self._bar_options})


def _seen_indices(trainer: Trainer, batch_idx: int, dataloader_idx: int) -> Sequence[Any] | None:
    """What Lightning's wrapper around the batch sampler has seen for a batch."""
    loaders = trainer.predict_dataloaders
    if isinstance(loaders, (list, tuple)):
        loaders = loaders[dataloader_idx]
    seen = getattr(getattr(loaders, "batch_sampler", None), "seen_batch_indices", None)
    if not isinstance(seen, list) or batch_idx >= len(seen):
        return None
    indices: Sequence[Any] = seen[batch_idx]
    return indices
