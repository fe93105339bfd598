"""Modules that shard themselves, are made without memory, or are Transformers models; launchers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import training
from distributed.jobs import finish, run_ranks, start_script, values
from fsdp.runs import batches, classifier, loader, make_trainer, whole
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from training import Classifier, mlp

pytestmark = training.IGNORED_WARNINGS


class Own(Classifier):
    """Shards itself, as Lightning's documents show it."""

    def configure_model(self) -> None:
        if self.device_mesh is None or isinstance(self.network, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        fully_shard(self.network[0], mesh=mesh)
        fully_shard(self.network, mesh=mesh)


class Late(Classifier):
    """Has no network until it is known where."""

    def __init__(self, device: str) -> None:
        super().__init__(nn.Identity())
        self.network_device = device

    def configure_model(self) -> None:
        if isinstance(self.network, nn.Identity):
            with torch.device(self.network_device):
                self.network = mlp()


class NoReset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 4, device="meta"))


def fit_own(size: int) -> Any:
    torch.manual_seed(0)
    net = Own(mlp())
    run = make_trainer(size, gradient_clip_val=0.1)
    run.fit(net, loader(run, is_text=False))
    assert size == 1 or not isinstance(net, FSDPModule)
    return net.losses, whole(net.state_dict())


def fit_late(size: int) -> Any:
    torch.manual_seed(0)
    net = Late("meta")
    run = make_trainer(size, {})
    run.fit(net, loader(run, is_text=False))
    broken = Classifier(NoReset())
    with pytest.raises(ValueError, match=r"network \(NoReset\) was made on the meta device, but"):
        make_trainer(size, {}).fit(broken, loader(run, is_text=False))
    return net.losses, whole(net.state_dict())


def fit_bert(size: int) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    from lightning_gaudi.modules import TransformersModule

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=11,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    net = TransformersModule(
        BertForSequenceClassification(config),
        task="sequence-classification",
        optimizer="auto" if size > 1 else "adamw",
        learning_rate=0.01,
        eps=1e-3,
    )
    run = make_trainer(size)
    data = [
        {
            "input_ids": tokens.chunk(size)[run.global_rank],
            "attention_mask": torch.ones_like(tokens).chunk(size)[run.global_rank],
            "labels": labels.chunk(size)[run.global_rank],
        }
        for tokens, labels in batches()
    ]
    rows = torch.utils.data.DataLoader(data, batch_size=None)  # type: ignore[arg-type]
    run.fit(net, rows)
    logits = [output["logits"] for output in run.predict(net, rows)]  # type: ignore[call-overload, index, union-attr]
    assert size == 1 or all(isinstance(p, DTensor) for p in net.parameters())
    return logits, whole(net.state_dict())


def all_fits() -> Any:
    return fit_own(2), fit_late(2), fit_bert(2)


@pytest.mark.slow
def test_modules(tmp_path: Path) -> None:
    ranks = values(run_ranks(tmp_path, all_fits))
    for number, expected in enumerate((fit_own(1), fit_late(1))):
        (losses, state), (other_losses, _) = (rank[number] for rank in ranks)
        mean = [(a + b) / 2 for a, b in zip(losses, other_losses, strict=True)]
        assert mean == pytest.approx(expected[0], abs=1e-5)
        torch.testing.assert_close(state, expected[1], atol=1e-5, rtol=1e-5)

    logits, state = fit_bert(1)
    found = [torch.cat(pair) for pair in zip(ranks[0][2][0], ranks[1][2][0], strict=True)]
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ranks[0][2][1], state, atol=1e-5, rtol=1e-5)


# Lightning starts this script once more for the second rank; torchrun starts it twice.
SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import lightning as L
import torch
import lightning_gaudi
from fsdp.runs import classifier, loader
from training import mlp

torch.set_num_threads(1)
net = classifier(mlp)
run = L.Trainer(
    accelerator="hpu", strategy="gaudi_fsdp", devices=2, max_epochs=1, logger=False,
    enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    enable_checkpointing=False,
)
run.fit(net, loader(run, is_text=False))
run.save_checkpoint(sys.argv[1])
if run.global_rank == 0:
    print(run.strategy.mode, type(net.network[0].weight).__name__, torch.distributed.get_backend())
"""


@pytest.mark.slow
def test_launchers_by_name_in_eager_mode(tmp_path: Path) -> None:
    reference = classifier(mlp)
    one = make_trainer(1, max_epochs=1)
    one.fit(reference, loader(one, is_text=False))
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    for number, launcher in enumerate(((), torchrun)):
        path = tmp_path / f"{number}.ckpt"
        process = start_script(
            tmp_path, SCRIPT, str(path), launcher=launcher, PT_HPU_LAZY_MODE=None
        )
        code, out, err = finish(process)
        assert code == 0, err
        assert "eager DTensor hccl" in out
        weights = torch.load(path, weights_only=True)["state_dict"]
        expected = {name: value.cpu() for name, value in reference.state_dict().items()}
        torch.testing.assert_close(dict(weights), expected, atol=1e-5, rtol=1e-5)
