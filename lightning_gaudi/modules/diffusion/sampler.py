"""`DiffusionSampler`: images from any pipeline of Diffusers through ``trainer.predict``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.diffusion.assembly import assemble, facts_of, module_parts
from lightning_gaudi.modules.diffusion.device_inputs import device_inputs
from lightning_gaudi.modules.diffusion.host_reads import HostReadCounter
from lightning_gaudi.modules.diffusion.numbering import RowNumbers
from lightning_gaudi.modules.diffusion.options import SamplingOptions, make_scheduler
from lightning_gaudi.modules.diffusion.progress import step_bar
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
from lightning_gaudi.modules.diffusion.settings import settings_of
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
            Leave it on the CPU: Lightning moves its modules. The pipeline's own ``to("hpu")`` sets
            ``PT_HPU_MAX_COMPOUND_OP_SIZE=1`` (diffusers 0.42), which splits graphs into single ops.
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
        leave_out: Asked about each image before it is sampled, with what the prediction will say
            of it (``images`` is None). Where it answers True the image is not sampled, and
            ``images`` has None in its place. `ImageWriter` sets it, to go on where a run stopped.

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
        self._reads_told = False
        self._plain_scheduler: Any = None  # the one whose steps move no numbers to the device
        self._numbers = RowNumbers()
        self.leave_out: Callable[[dict[str, Any]], bool] | None = None

    @property
    def hpu_graph_targets(self) -> list[str]:
        """What `HPUGraphCallback` captures: the denoiser and, where it is called, the decoder."""
        targets = [self._facts.denoiser]
        if self._facts.decoder is not None and self.options.output_type != "latent":
            targets.append(self._facts.decoder)
        return targets

    @property
    def predictions_per_row(self) -> int:
        """Images of each row, one after the other: what `PredictionOrder` puts together."""
        return self.options.num_images_per_prompt

    # --- Lightning ------------------------------------------------------------------------------

    @override
    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Leave the batch on the host: the pipeline looks at it there and moves what it needs."""
        return batch

    @override
    def on_predict_start(self) -> None:
        """Count rows from 0, and time anew: graphs are captured anew too."""
        self._numbers.restart()
        self.stats.restart_timing()

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
        indices = self._numbers.of(rows, self._attached_trainer(), batch_idx, dataloader_idx)
        requests = requests_of(
            rows,
            indices,
            self._facts,
            num_images=self.options.num_images_per_prompt,
            seed=self.options.seed,
        )
        images: list[Any] = [None] * len(requests)
        wanted = [place for place, each in enumerate(requests) if not self._is_left_out(each)]
        for part in batches_of([requests[place] for place in wanted], self.options.batch_size):
            places = [wanted[number] for number in part]
            result = self._sample([requests[place] for place in places])
            flags = getattr(result, "nsfw_content_detected", None)
            for number, place in enumerate(places):
                images[place] = result.images[number]
                if flags is not None:
                    requests[place].extra["nsfw_content_detected"] = bool(flags[number])
        return self._prediction(requests, images)

    def _is_left_out(self, request: ImageRequest) -> bool:
        if request.extra.get("is_filler"):  # of our own data
            return True
        if self.leave_out is None:
            return False
        told = self._prediction([request], [None])
        return self.leave_out({name: column[0] for name, column in told.items()})

    # --- one batch ------------------------------------------------------------------------------

    def _sample(self, requests: list[ImageRequest]) -> Any:
        """What the pipeline returns for requests with the same settings, and their fillers."""
        pipeline, options = self.pipeline, self.options
        whole = filled(requests, options.batch_size)
        arguments = {**options.arguments_for(self._facts, len(whole)), **collated(whole)}
        for name in ("prompt", "negative_prompt"):
            if isinstance(arguments.get(name), list):
                self._cut_prompts.look_at(arguments[name])
        counter = None if self._reads_told else HostReadCounter()
        with ExitStack() as stack:
            stack.enter_context(step_bar(pipeline, self._attached_trainer(), self.show_steps))
            stack.enter_context(_plain_dtype())
            stack.enter_context(device_inputs(getattr(pipeline, self._facts.denoiser)))
            keeps_numbers = pipeline.scheduler is not self._plain_scheduler
            steps = stack.enter_context(
                on_host(pipeline.scheduler, counter, keeps_numbers=keeps_numbers)
            )
            result = pipeline(**arguments)
        # To be sure of that, the whole schedule must have been seen.
        timesteps = getattr(pipeline.scheduler, "timesteps", None)
        saw_all = timesteps is not None and steps.num_steps >= len(timesteps)
        if saw_all and steps.numbers is not None and not steps.numbers.num_kept:
            self._plain_scheduler = pipeline.scheduler
        if counter is not None:
            self._tell_reads(counter, steps.num_steps)
        if getattr(result, "images", None) is None:
            raise ConfigurationError(
                f"{self._facts.name} gives {type(result).__name__}, which has no images."
            )
        self.stats.images += len(requests)
        self.stats.filler_images += len(whole) - len(requests)
        self.stats.batches += 1
        self.stats.denoising_steps += steps.num_steps
        if not self.stats.is_timing:
            self._wait()
            self.stats.start_timing()
        return result

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
        condition = self._facts.condition
        if condition != "nothing":
            prediction[condition] = [request.inputs.get(condition) for request in requests]
        for name in sorted({name for request in requests for name in request.extra}):
            prediction.setdefault(name, [request.extra.get(name) for request in requests])
        return prediction

    def _settings_of(self, request: ImageRequest) -> dict[str, Any]:
        """What an image is made with, for its metadata."""
        arguments = {**self.options.arguments_for(self._facts, 1), **request.settings}
        arguments.update({n: v for n, v in request.inputs.items() if n != "prompt"})
        return settings_of(arguments, self._facts.name, self.pipeline.scheduler)

    # --- rows -----------------------------------------------------------------------------------

    def _with_defaults(self, row: dict[str, Any]) -> dict[str, Any]:
        negative = self.options.negative_prompt
        if negative is None or row.get("negative_prompt") is not None:
            return row
        return {**row, "negative_prompt": negative}

    def _attached_trainer(self) -> Trainer | None:
        try:
            return self.trainer
        except RuntimeError:  # the module's steps are called by hand
            return None

    # --- device and terminal --------------------------------------------------------------------

    def _wait(self) -> None:
        if self.device.type == "hpu":
            hpu.synchronize()

    def _tell_reads(self, counter: HostReadCounter, num_steps: int) -> None:
        self._reads_told = True
        self.stats.scheduler_host_reads = counter.num_reads
        counter.warn(type(self.pipeline.scheduler).__name__, num_steps)


@contextmanager
def _plain_dtype() -> Iterator[None]:
    """Make new tensors float32, as in the stock pipeline, whatever ``Trainer(precision=...)`` says.

    Under ``"bf16-true"`` Lightning makes bfloat16 the default of all steps, and the scheduler's
    tables would be made in it.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
