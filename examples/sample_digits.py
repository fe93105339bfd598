"""Train a small diffusion model on handwritten digits, then sample a sheet of digits by class.

    LIGHTNING_GAUDI_EMULATOR=1 python examples/sample_digits.py --check

Trains a U-Net on the 8x8 digits of scikit-learn with `GaudiStrategy`, forward and backward replayed
as one graph. Saves it as a pipeline of Diffusers, and samples digits of each class with
`DiffusionSampler`, whose denoiser is captured once. ``runs/digits/images`` then has the images, an
index and a contact sheet. A classifier that was fitted to the real digits says which digit it sees
in each; ``--check`` fails below 80 %. On a Gaudi machine:
``lightning-gaudi run examples/sample_digits.py``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lightning as L
import numpy as np
import torch
from diffusers import ConsistencyModelPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.utils import logging
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_gaudi import GaudiStrategy, HPUGraphCallback
from lightning_gaudi.callbacks import ImageWriter
from lightning_gaudi.data import PromptDataModule
from lightning_gaudi.modules.diffusion import DiffusionSampler

NUM_CLASSES = 10


class DigitDenoiser(L.LightningModule):
    """A U-Net that learns which noise was added to an image of a digit, given the digit.

    Args:
        channels: Channels of its two resolutions, 8x8 and 4x4.
        learning_rate: The highest; it rises during the first tenth of the run and falls to zero.
    """

    def __init__(self, channels: tuple[int, int], learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.unet = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=channels,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=16,
            num_class_embeds=NUM_CLASSES,
        )
        self.scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Add noise at a random time of the schedule, and compare what the U-Net finds.

        Args:
            batch: Images, float32 [B, 1, 8, 8] in [-1, 1], and digits, int64 [B].
            batch_idx: The batch's number.
        """
        images, digits = batch
        noise = torch.randn_like(images)
        num_times = self.scheduler.config.num_train_timesteps
        times = torch.randint(0, num_times, (len(images),), device=images.device)
        noisy = self.scheduler.add_noise(images, noise, times)
        (found,) = self.unet(noisy, times, class_labels=digits, return_dict=False)
        loss = F.mse_loss(found, noise)
        self.log("loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam, and a schedule that changes the learning rate at each step."""
        optimizer = torch.optim.Adam(self.parameters(), self.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self.learning_rate,
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=0.1,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def digits_to_train_on(batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
    """The 1797 digits of scikit-learn in batches of one size."""
    images, digits = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 8 - 1
    data = TensorDataset(pixels, torch.from_numpy(digits))
    return DataLoader(data, batch_size, shuffle=True, drop_last=True)


def make_trainer(callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    """A trainer on one HPU."""
    return L.Trainer(
        accelerator="hpu",
        strategy=GaudiStrategy(),
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **options,
    )


def share_recognised(images: np.ndarray, digits: np.ndarray) -> float:
    """Which part of the images a classifier of real digits takes for what they should be.

    Args:
        images: Float [N, 8, 8] in [0, 1].
        digits: Int [N].
    """
    real_images, real_digits = load_digits(return_X_y=True)
    classifier = SVC(gamma=0.001).fit(real_images, real_digits)
    return float((classifier.predict(images.reshape(-1, 64) * 16) == digits).mean())


def main() -> None:
    """Parse the command line, train, save, sample and judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=64, help="images of a training step")
    parser.add_argument("--channels", type=int, nargs=2, default=(32, 64))
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--per-class", type=int, default=20, help="images to sample of each digit")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps")
    parser.add_argument("--check", action="store_true", help="fail if under 80 %% are recognised")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    given = parser.parse_args()
    for name in ("epochs", "batch_size", "per_class", "steps"):
        if getattr(given, name) < 1:
            value = getattr(given, name)
            parser.error(f"--{name.replace('_', '-')} must be 1 or more, but it is {value}")

    logging.set_verbosity_error()  # or it recommends a package for large models
    logging.disable_progress_bar()
    L.seed_everything(0, verbose=False)
    console = Console()
    module = DigitDenoiser(tuple(given.channels), given.learning_rate)
    start = time.perf_counter()
    trainer = make_trainer([HPUGraphCallback(stages=("fit",))], max_epochs=given.epochs)
    trainer.fit(module, digits_to_train_on(given.batch_size))
    seconds = time.perf_counter() - start
    loss = float(trainer.callback_metrics["loss"])
    console.print(f"Trained for {trainer.global_step} steps in {seconds:.0f} s; loss {loss:.4f}.")

    # The stock pipeline for a UNet2DModel with class labels. Its loop fits any scheduler.
    scheduler = DDIMScheduler.from_config(module.scheduler.config)
    ConsistencyModelPipeline(module.unet, scheduler).save_pretrained(given.out / "pipeline")

    rows = [str(digit) for _ in range(given.per_class) for digit in range(NUM_CLASSES)]
    labels = given.out / "digits.csv"
    labels.write_text("\n".join(["class_labels", *rows]) + "\n")
    sampler = DiffusionSampler(
        given.out / "pipeline",
        num_inference_steps=given.steps,
        batch_size=5 * NUM_CLASSES,
        output_type="np",
    )
    images = given.out / "images"
    for old in images.glob("*.png"):  # of another training
        old.unlink()
    # Ten columns: one for each digit.
    callbacks = [HPUGraphCallback(), ImageWriter(images, columns=NUM_CLASSES)]
    predictions = make_trainer(callbacks).predict(sampler, PromptDataModule(labels)) or []
    rate = sampler.stats.images_per_second
    per_second = "" if rate is None else f", {rate:.1f} a second"
    console.print(f"Sampled {sampler.stats.images} digits{per_second}: {images}", soft_wrap=True)

    pixels = np.concatenate([batch["images"] for batch in predictions])[..., 0]
    digits = np.concatenate([batch["class_labels"] for batch in predictions])
    share = share_recognised(pixels, digits)
    console.print(f"A classifier of real digits recognises {share:.1%} of {len(digits)}.")
    if given.check and share < 0.8:
        sys.exit("Fewer than 80 % of the digits were recognised.")


if __name__ == "__main__":
    main()
