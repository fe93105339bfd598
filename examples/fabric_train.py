"""Train a classifier of handwritten digits in a loop of one's own, with Lightning Fabric.

    LIGHTNING_GAUDI_EMULATOR=1 python examples/fabric_train.py --check

The loop is plain PyTorch; Fabric puts it on the HPU and breaks the lazy graph after each backward
and optimizer step. The digits that were held out are scored by HPU-graph replay. ``--check`` runs
the same loop with stock Fabric on the CPU and fails if a loss or a prediction differs. With several
cards, ``--devices 2``, each has its share of every batch. On a Gaudi machine:
``lightning-gaudi run examples/fabric_train.py``.
"""

from __future__ import annotations

import argparse
import sys

import torch
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_gaudi  # noqa: F401 - registers accelerator="hpu" and strategy="gaudi"
from lightning_gaudi.graphs import GraphedForward

NUM_HELD_OUT = 298  # even, so that two cards have the same number
BATCH_SIZE = 50


def make_network() -> nn.Module:
    """8x8 images, float32 [B, 1, 8, 8], to scores of ten digits, float32 [B, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 36, 10),
    )


def make_loaders(batch_size: int) -> tuple[DataLoader[tuple[Tensor, ...]], ...]:
    """Digits to train on, in another order each epoch, and digits that are held out."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 8 - 1
    digits = torch.from_numpy(labels)
    split = len(digits) - NUM_HELD_OUT
    # A generator of its own, so that the order does not depend on what else draws numbers.
    order = torch.Generator().manual_seed(0)
    train = TensorDataset(pixels[:split], digits[:split])
    held_out = TensorDataset(pixels[split:], digits[split:])
    return (
        DataLoader(train, batch_size, shuffle=True, drop_last=True, generator=order),
        DataLoader(held_out, batch_size),
    )


def run(fabric: Fabric, num_epochs: int) -> tuple[list[float], Tensor, float]:
    """Train and evaluate.

    Returns:
        The mean loss of each epoch; for the digits held out, in the order of the data, what they
        were taken for, int64 on the CPU; and how many of them were recognised, from 0 to 1.
    """
    fabric.seed_everything(0, verbose=False)
    network = make_network()
    model, optimizer = fabric.setup(network, torch.optim.AdamW(network.parameters(), lr=2e-3))
    train_loader, loader = fabric.setup_dataloaders(*make_loaders(BATCH_SIZE // fabric.world_size))
    means = []
    for epoch in range(num_epochs):
        model.train()
        total = torch.zeros((), device=fabric.device)
        for images, digits in train_loader:
            loss = F.cross_entropy(model(images), digits)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach()
        mean = fabric.all_reduce(total / len(train_loader))
        means.append(float(mean))
        fabric.print(f"epoch {epoch}: loss {means[-1]:.4f}")

    model.eval()
    # Not what Fabric and DDP wrap around it: a graph must not hold communication.
    score = GraphedForward(network) if fabric.device.type == "hpu" else network
    found, right = [], torch.zeros((), device=fabric.device)
    with torch.no_grad():
        for images, digits in loader:
            found.append(score(images).argmax(1))
            right += (found[-1] == digits).sum()
    share = fabric.all_reduce(right, reduce_op="sum") / (len(loader.sampler) * fabric.world_size)
    gathered = fabric.all_gather(torch.cat(found))
    # Ranks take turns, so the data's order is theirs in turn.
    predictions = gathered.T.flatten() if fabric.world_size > 1 else gathered
    return means, predictions.cpu(), float(share)


def main() -> int:
    """Train as the command line says; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--devices", type=int, default=1, help="cards, one process each")
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    parser.add_argument("--check", action="store_true", help="compare with stock Fabric on the CPU")
    given = parser.parse_args()
    if given.check and (given.devices > 1 or given.precision != "32-true"):
        parser.error("--check compares one card in 32-true")

    fabric = Fabric(
        accelerator="hpu", strategy="gaudi", devices=given.devices, precision=given.precision
    )
    fabric.launch()
    means, predictions, share = run(fabric, given.epochs)
    fabric.print(f"{share:.1%} of {NUM_HELD_OUT} held-out digits recognised")
    if not given.check:
        return 0
    stock = Fabric(accelerator="cpu", devices=1)
    expected_means, expected, _ = run(stock, given.epochs)
    difference = max(abs(a - b) for a, b in zip(means, expected_means, strict=True))
    num_other = int((predictions != expected).sum())
    print(f"largest difference of a loss to the CPU's {difference:.1e}, {num_other} other digits")
    return 1 if difference > 1e-4 or num_other else 0


if __name__ == "__main__":
    sys.exit(main())
