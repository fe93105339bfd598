"""A plain DataLoader with a BucketBatchSampler in Lightning's loops, defaults unchanged."""

from __future__ import annotations

import re

import pytest
from data.loops import BUCKETS, LENGTHS, Notes, loader, rows, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_gaudi.data import BucketBatchSampler, BucketCollator
from lightning_gaudi.errors import ConfigurationError

# The runs that go on save nothing themselves.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path")


def test_every_stage_gets_the_sampler_s_own_batches():
    net, run = Notes(), trainer(num_sanity_val_steps=0)
    evaluation = list(loader().batch_sampler)
    run.fit(net, loader(shuffle=True), loader())
    run.validate(net, loader(), verbose=False)
    run.test(net, loader(), verbose=False)
    run.predict(net, loader())
    sampler = loader(shuffle=True).batch_sampler
    expected = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected += list(sampler)
    assert net.of("fit") == expected
    assert net.of("validate") == evaluation * 3
    assert net.of("test") == net.of("predict") == evaluation
    assert run.predict_dataloaders.batch_sampler.seen_batch_indices == evaluation
    assert all(length == (9 if max(LENGTHS[i] for i in r) > 4 else 4) for _, r, length in net.seen)


def test_prediction_takes_what_drop_last_left_out():
    net, run = Notes(), trainer()
    data = loader(drop_last=True)
    run.predict(net, data)
    assert sorted(i for batch in net.of("predict") for i in batch) == list(range(len(LENGTHS)))
    assert data.batch_sampler.drop_last, "the user's own sampler was changed"
    assert len(list(data.batch_sampler)) == 3


def test_other_calls_make_new_samplers():
    sampler = loader().batch_sampler
    other = BucketBatchSampler([1] * 3, [4], batch_size=sampler.batch_size)
    assert other is not sampler
    assert other.num_rows == 3


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("when", ["step", "epoch", "validation"])
def test_a_fit_goes_on_where_it_was_saved(tmp_path, when, num_workers):
    options = {"step": {"every_n_train_steps": 1}, "epoch": {}, "validation": {}}[when]
    options["save_on_train_epoch_end"] = when == "epoch"
    saved = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, monitor="step", **options)
    middle = {"val_check_interval": 2} if when == "validation" else {}
    data = {"shuffle": True, "num_workers": num_workers}

    def fit(net, *callbacks, checkpoint=None):
        run = trainer(*callbacks, max_epochs=3, num_sanity_val_steps=0, **middle)
        run.fit(net, loader(**data), loader(), ckpt_path=checkpoint)
        return net.of("fit")

    whole = fit(Notes(), saved)
    assert len(whole) == 12
    checkpoints = {int(re.findall(r"step=(\d+)", p.name)[0]): p for p in tmp_path.iterdir()}
    assert (
        sorted(checkpoints)
        == {
            "step": list(range(1, 13)),
            "epoch": [4, 8, 12],
            "validation": [2, 4, 6, 8, 10, 12],
        }[when]
    )
    for step, path in checkpoints.items():
        if num_workers and step not in (2, 4):
            continue
        assert fit(Notes(), checkpoint=path) == whole[step:]


@pytest.mark.parametrize(("num_workers", "steps"), [(0, range(1, 7)), (1, [2, 3])], ids=str)
def test_a_fit_goes_on_after_epochs_cut_short(tmp_path, num_workers, steps):
    saved = ModelCheckpoint(
        tmp_path, "{step}", save_top_k=-1, monitor="step", every_n_train_steps=1
    )

    def fit(*callbacks, checkpoint=None):
        net, run = Notes(), trainer(*callbacks, limit_train_batches=3)
        run.fit(net, loader(shuffle=True, num_workers=num_workers), ckpt_path=checkpoint)
        return net.of("fit")

    whole = fit(saved)
    for step in steps:
        assert fit(checkpoint=tmp_path / f"step={step}.ckpt") == whole[step:]


def test_a_dataloader_follows_the_trainer_that_uses_it(tmp_path):
    saved = ModelCheckpoint(
        tmp_path, "{step}", save_top_k=-1, monitor="step", every_n_train_steps=1
    )
    data = loader(shuffle=True)
    trainer().fit(Notes(), data)  # one that is at its end, and not in the middle of an epoch
    whole, rest = Notes(), Notes()
    trainer(saved).fit(whole, data)
    trainer().fit(rest, data, ckpt_path=tmp_path / "step=3.ckpt")
    assert rest.of("fit") == whole.of("fit")[3:]


def test_a_state_of_a_dataloader_s_own_is_kept():
    data = loader(shuffle=True)
    data.state_dict, data.load_state_dict = dict, {}.update
    trainer(max_epochs=1).fit(Notes(), data)
    assert data.state_dict is dict


def test_overfitting_on_other_batches_in_every_epoch_is_said():
    with pytest.warns(UserWarning, match="to take the same batches in every epoch.*shuffle=False"):
        trainer(overfit_batches=1).fit(Notes(), loader(shuffle=True))
    net = Notes()
    trainer(overfit_batches=1).fit(net, loader())
    assert net.of("fit") == [net.of("fit")[0]] * 2


def test_a_checkpoint_of_other_data(tmp_path):
    saved = ModelCheckpoint(
        tmp_path, "{step}", save_top_k=-1, monitor="step", every_n_train_steps=1
    )
    trainer(saved, max_epochs=1).fit(Notes(), loader(shuffle=True))
    with pytest.raises(ConfigurationError, match=r"middle of epoch 0: num_rows was 7 and is 4"):
        trainer().fit(
            Notes(), loader([9, 9, 3, 3], shuffle=True), ckpt_path=tmp_path / "step=1.ckpt"
        )


def test_no_data_to_predict():
    with pytest.warns(UserWarning, match="Total length of `DataLoader` across ranks is zero"):
        assert not trainer().predict(Notes(), _without_rows())


def _without_rows():
    return DataLoader(
        rows([]),
        batch_sampler=BucketBatchSampler([], BUCKETS, 2),
        collate_fn=BucketCollator(BUCKETS, pad_token_id=0),
    )
