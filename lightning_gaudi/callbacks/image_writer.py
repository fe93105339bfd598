"""`ImageWriter`: images of a prediction become files while the next ones are made."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from typing_extensions import override

from lightning_gaudi.callbacks.images.background import BackgroundWriter
from lightning_gaudi.callbacks.images.folder import ImageFolder
from lightning_gaudi.callbacks.images.metadata import SUFFIXES, Fields, ImageFormat, as_json, encode
from lightning_gaudi.callbacks.images.pixels import to_pil
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.whole_files import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageWriter(Callback):
    """Writes the images of ``trainer.predict`` to a folder, and goes on where a run stopped.

    Each image is a file such as ``00003-00-a-red-cat.png``: the row's index in the data set, the
    number of the row's image, words of the prompt. Its metadata has the prompt, the seed, the
    settings and the row's other fields. At the end the first card writes ``index.json``, a list
    with the metadata and the size of every image of the folder, and a contact sheet.

    A thread writes while the next batch runs. Files are whole or not there. An error in writing
    stops the run, at the latest at its end. What was made is written also when the run fails or is
    stopped with Ctrl-C.

    Run again with the same folder, `DiffusionSampler` makes only the images that are not there yet.
    One counts as there if it was made of the same prompt, seed, settings, pictures and other fields
    and with the same weights and scheduler; its place in ``images`` of the prediction is then None.
    If any of them is different, `on_change` decides. Images of rows that the data no longer has
    stay. Rows that bring generators of their own are always made anew.

    With several cards each writes its own images; the folder must be one that all can reach, else
    the index has those of the first card's machine only.

    Args:
        dirpath: The folder; made where there is none.
        image_format: ``"png"``, ``"jpeg"`` (quality 95) or ``"webp"`` (lossless).
        contact_sheet: Whether to write ``contact_sheet.png``. From the 21st row of images on there
            are further ones, ``contact_sheet_2.png`` ...
        columns: Images side by side on the contact sheet.
        on_change: What to do where an image is there that was made otherwise: ``"raise"`` an error
            before it is made, or ``"replace"`` it.
        max_pending: How many images may wait to be written; the run waits while there are as many.

    Attributes:
        num_written: Images of this card that the last run wrote.
        num_left_out: Images of this card that were there.

    Raises:
        ConfigurationError: An argument has a value that it cannot have. When prediction starts: the
            folder cannot be written to, or there are several dataloaders or another ImageWriter.
            While it runs: a prediction has no images, or an image is there that was made otherwise.
        RuntimeError: An image could not be written; its cause is the reason.
    """

    def __init__(
        self,
        dirpath: str | Path,
        *,
        image_format: ImageFormat = "png",
        contact_sheet: bool = True,
        columns: int = 10,
        on_change: Literal["raise", "replace"] = "raise",
        max_pending: int = 32,
    ) -> None:
        if image_format not in SUFFIXES:
            raise ConfigurationError(
                f"image_format must be one of {', '.join(map(repr, SUFFIXES))}, but it is "
                f"{image_format!r}."
            )
        if on_change not in ("raise", "replace"):
            raise ConfigurationError(
                f"on_change must be 'raise' or 'replace', but it is {on_change!r}."
            )
        for name, value in (("columns", columns), ("max_pending", max_pending)):
            if value < 1:
                raise ConfigurationError(f"{name} must be 1 or more, but it is {value}.")
        self.dirpath = Path(dirpath)
        self.image_format: ImageFormat = image_format
        self.contact_sheet = contact_sheet
        self.columns = columns
        self.on_change = on_change
        self.num_written = 0
        self.num_left_out = 0
        self._folder = ImageFolder(self.dirpath, image_format)
        self._writer = BackgroundWriter(max_pending)
        self._weights = ""
        self._put_back: Callable[[], None] | None = None

    # --- Lightning ------------------------------------------------------------------------------

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the folder, and tell the weights apart while they are still on the host."""
        if stage == "predict":
            self._folder.make()
            self._weights = _fingerprint(pl_module, trainer.ckpt_path)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See what is there, and have the sampler leave it out."""
        if len(trainer.num_predict_batches) > 1:
            raise ConfigurationError(
                f"ImageWriter takes one dataloader, but there are "
                f"{len(trainer.num_predict_batches)}, whose rows have the same numbers. Predict "
                "with one after the other, each with a folder of its own."
            )
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if sum(isinstance(each, ImageWriter) for each in callbacks) > 1:
            raise ConfigurationError(
                "there are several ImageWriters, and an image that one of them has would not be "
                "made for the other. Use one in each Trainer."
            )
        self.num_written = self.num_left_out = 0
        if trainer.is_global_zero:
            self._folder.remove_left_overs()
        trainer.strategy.barrier("ImageWriter")  # before anybody writes hidden files again
        self._folder.scan()
        self._attach(pl_module)

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hand a batch's images to the thread."""
        rows = _rows_of(outputs)
        images = to_pil(outputs["images"])
        for fields, image in zip(rows, images, strict=True):
            fields = as_json({**fields, "weights": self._weights})
            if not hasattr(pl_module, "leave_out"):
                self._is_same(fields)  # nobody asked before; an image made otherwise is an error
            self._submit(image, fields)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the thread; the first card then writes index and contact sheet."""
        self._detach()
        self._writer.close()
        trainer.strategy.barrier("ImageWriter")
        if trainer.is_global_zero:
            self._folder.write_index(self.columns if self.contact_sheet else None)
            rank_zero_info(
                f"ImageWriter wrote {self.num_written} images to {self.dirpath}; "
                f"{self.num_left_out} were there"
                + (" (of the first card's)." if trainer.world_size > 1 else ".")
            )

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write what was made before the run failed or was stopped, and end the thread.

        An error in writing is a warning here, so that it does not hide the one that stopped it.
        """
        self._detach()
        try:
            self._writer.close()
        except RuntimeError as error:
            warnings.warn(str(error), stacklevel=2)

    # --- what is there --------------------------------------------------------------------------

    def _attach(self, pl_module: LightningModule) -> None:
        """Have a sampler ask us, besides whom it asked before."""
        if not hasattr(pl_module, "leave_out"):
            return
        module: Any = pl_module
        before = module.leave_out

        def is_there(told: Mapping[str, Any]) -> bool:
            # Without a seed (a row that brought a generator) nobody can tell what is there.
            has_seed = told.get("seed") is not None
            if has_seed and self._is_same(as_json({**told, "weights": self._weights})):
                self.num_left_out += 1
                return True
            return before is not None and bool(before(told))

        def put_back() -> None:
            module.leave_out = before

        module.leave_out = is_there
        self._put_back = put_back

    def _detach(self) -> None:
        if self._put_back is not None:
            self._put_back()
            self._put_back = None

    def _is_same(self, fields: Fields) -> bool:
        """Whether an image is there and was made from the same.

        Raises:
            ConfigurationError: It was made otherwise, and is not to be replaced.
        """
        found = self._folder.differences(fields)
        if found is None:
            return False
        path, different = found
        if different and self.on_change == "raise":
            raise ConfigurationError(
                f"{path} is there, but it was made otherwise: {'; '.join(different)}. Give another "
                "folder, remove the images that are to be made anew, or use "
                "ImageWriter(on_change='replace')."
            )
        return not different

    # --- writing --------------------------------------------------------------------------------

    def _submit(self, image: Image, fields: Fields) -> None:
        path = self._folder.path_of(fields)
        old = [other for other in self._folder.files_of(fields) if other != path]

        def write() -> None:
            try:
                for other in old:
                    other.unlink(missing_ok=True)
                write_whole(path, encode(image, fields, self.image_format))
            except Exception as error:
                raise RuntimeError(f"ImageWriter could not write {path}: {error}") from error
            self.num_written += 1

        self._writer.submit(write)


def _rows_of(outputs: Any) -> list[dict[str, Any]]:
    """The fields of each image that is there, without the image.

    Raises:
        ConfigurationError: There are no images, or columns of other lengths.
    """
    if not isinstance(outputs, Mapping) or "images" not in outputs:
        what = (
            f"a dict with {', '.join(map(repr, outputs)) or 'nothing'}"
            if isinstance(outputs, Mapping)
            else f"of type {type(outputs).__name__}"
        )
        raise ConfigurationError(
            f"ImageWriter found no images: the prediction is {what}. predict_step must return a "
            "dict with 'images' and 'index' (the rows' numbers in the data set), as "
            "DiffusionSampler's does."
        )
    if "index" not in outputs:
        raise ConfigurationError(
            "ImageWriter names files by the rows' numbers in the data set, but the prediction has "
            f"only {', '.join(map(repr, outputs))}. Return 'index', as DiffusionSampler does."
        )
    columns = {
        name: column.tolist() if isinstance(column, (Tensor, np.ndarray)) else column
        for name, column in outputs.items()
        if name != "images"
    }
    number = len(outputs["images"])
    for name, column in columns.items():
        if not hasattr(column, "__len__") or len(column) != number:
            raise ConfigurationError(
                f"the prediction has {number} images, but its {name!r} is not a list of as many. "
                "Return a value for each image."
            )
    return [
        {"image_number": 0, **{name: column[place] for name, column in columns.items()}}
        for place in range(number)
        if outputs["images"][place] is not None
    ]


def _fingerprint(module: LightningModule, checkpoint: str | Path | None) -> str:
    """Tell weights apart by the first values of each, and by the checkpoint that is loaded yet."""
    digest = hashlib.sha256()
    if checkpoint is not None:
        digest.update(str(checkpoint).encode())
        if Path(checkpoint).is_file():
            digest.update(str(Path(checkpoint).stat().st_mtime_ns).encode())
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor) and not value.is_meta:
            first = value.detach().flatten()[:16].cpu()
            numbers = first.float() if first.is_floating_point() else first
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(numbers.numpy().tobytes())
    return digest.hexdigest()[:16]
