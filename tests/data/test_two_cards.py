"""Two processes on two emulated cards: every row once, in order, from fit to prediction."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from data.loops import LENGTHS, trainer
from data.texts import SIZES, classifier, labelled_rows, word_tokenizer, write

from lightning_gaudi.data import BucketBatchSampler, TextDataModule

# Lightning starts this script once more for the second rank.
SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import torch
from data.loops import LENGTHS, Notes, loader, rows, trainer
from data.texts import SIZES, classifier, labelled_rows, text, word_tokenizer, write
from lightning_gaudi.callbacks import PredictionOrder
from lightning_gaudi.data import TextDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

folder = Path(sys.argv[1])
found = {}

def predict(name, data, gather="all"):
    net = Notes()
    run = trainer(PredictionOrder(gather), devices=2)
    if isinstance(data, TextDataModule):
        net.predict_step = lambda batch, batch_idx: {"index": batch["input_ids"][:, 1],
                                                     "length": batch["attention_mask"].sum(1)}
    result = run.predict(net, data)
    found[name] = result and [(int(r["index"]), int(r["length"])) for r in result]
    return run

net, run = Notes(), trainer(devices=2, num_sanity_val_steps=0)
run.fit(net, loader(shuffle=True), loader())
run.validate(net, loader(), verbose=False)
run.test(net, loader(), verbose=False)
found |= {stage: net.of(stage) for stage in ("fit", "validate", "test")}

saved = ModelCheckpoint(folder / "saved", "{step}", save_top_k=-1, monitor="step",
                        every_n_train_steps=1)
trainer(saved, devices=2).fit(Notes(), loader(shuffle=True))
net = Notes()
trainer(devices=2).fit(net, loader(shuffle=True), ckpt_path=folder / "saved" / "step=3.ckpt")
found["rest"] = net.of("fit")

predict("buckets", loader(drop_last=True))
predict("buckets_first", loader(), "first")
predict("buckets_none", loader(), "none")
predict("stock", DataLoader(rows(), batch_size=2, collate_fn=loader().collate_fn))

for name, lengths in (("no_text", []), ("one_text", [3]), ("texts", LENGTHS)):
    path = folder / f"{name}.txt"
    if run.global_rank == 0:
        write(path, [{"text": text(n, i)} for i, n in enumerate(lengths)])
    run.strategy.barrier()
    predict(name, TextDataModule(word_tokenizer(), predict=path, batch_size=2, num_buckets=2))

path = folder / "labels.jsonl"
if run.global_rank == 0:
    write(path, labelled_rows())
run.strategy.barrier()
(found["metrics"],) = trainer(devices=2).test(
    classifier(), TextDataModule(word_tokenizer(), test=path, **SIZES), verbose=False
)
torch.save(found, folder / f"rank{run.global_rank}.pt")
"""


def run_two(folder: Path) -> list[dict]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {
        "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{Path(__file__).parent.parent}",
        "LIGHTNING_GAUDI_EMULATOR_DEVICES": "2",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def planned(rank: int, epoch: int = 0, **options) -> list[list[int]]:
    sampler = BucketBatchSampler(LENGTHS, [4, 9], 2, rank=rank, world_size=2, **options)
    sampler.set_epoch(epoch)
    return [[int(i) for i in batch] for batch in sampler]


@pytest.mark.slow
def test_every_row_once_and_in_order(tmp_path: Path) -> None:
    found = run_two(tmp_path)
    path = write(tmp_path / "labels.jsonl", labelled_rows())
    (on_one_card,) = trainer().test(
        classifier(), TextDataModule(word_tokenizer(), test=path, **SIZES), verbose=False
    )
    for rank, of_rank in enumerate(found):
        evaluation = planned(rank)
        assert of_rank["fit"] == [b for e in range(2) for b in planned(rank, e, shuffle=True)]
        assert of_rank["rest"] == of_rank["fit"][3:]
        assert of_rank["validate"] == evaluation * 3
        assert of_rank["test"] == evaluation
        whole = list(enumerate(LENGTHS))
        for name in ("buckets", "stock"):
            assert of_rank[name] == whole, name
        assert of_rank["buckets_first"] == ([] if rank else whole)
        mine = sorted({i for batch in evaluation for i in batch})
        assert of_rank["buckets_none"] == [(i, LENGTHS[i]) for i in mine]
        # The first word of text i is w{i}, token 5 + i; two special tokens are around.
        assert of_rank["texts"] == [(5 + i, n + 2) for i, n in enumerate(LENGTHS)]
        assert of_rank["one_text"] == [(5, 5)]
        assert not of_rank["no_text"]
        assert of_rank["metrics"] == pytest.approx(on_one_card, rel=1e-6), "a filler was counted"
