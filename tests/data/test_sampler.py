"""Every row comes out, batches keep their size, ranks keep step, and an iteration resumes."""

from __future__ import annotations

import copy
import pickle
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gaudi.data import BucketBatchSampler, choose_buckets
from lightning_gaudi.data.batching import Filler
from lightning_gaudi.data.buckets import bucket_of
from lightning_gaudi.errors import ConfigurationError

LENGTHS = st.lists(st.integers(0, 20), max_size=40)
SIZES = st.integers(1, 6)
RANKS = st.integers(1, 3)


def samplers(lengths, num_buckets, batch_size, world_size, **options):
    buckets = choose_buckets(lengths, num_buckets) if lengths else [8]
    return [
        BucketBatchSampler(
            lengths, buckets, batch_size, rank=rank, world_size=world_size, **options
        )
        for rank in range(world_size)
    ]


@given(LENGTHS, SIZES, SIZES, RANKS, st.booleans())
@settings(deadline=None)  # the machine may be busy
def test_evaluation_has_every_row_once(lengths, num_buckets, batch_size, world_size, filler):
    ranks = samplers(
        lengths, num_buckets, batch_size, world_size, fill="filler" if filler else None
    )
    batches = [list(sampler) for sampler in ranks]
    assert len({len(b) for b in batches}) == 1
    assert all(len(sampler) == len(b) for sampler, b in zip(ranks, batches, strict=True))
    rows = [i for of_rank in batches for batch in of_rank for i in batch]
    assert sorted(i for i in rows if not isinstance(i, Filler)) == list(range(len(lengths)))
    for batch in (batch for of_rank in batches for batch in of_rank):
        assert batch
        fixed = filler or world_size > 1
        assert len(batch) == batch_size if fixed else len(batch) <= batch_size
        assert len({bucket_of(lengths[i], ranks[0].buckets) for i in batch}) == 1
        real = [i for i in batch if not isinstance(i, Filler)]
        assert batch[: len(real)] == real == sorted(real)
    for step in zip(*batches, strict=True):  # a rank without rows only where they are too few
        real_rows = [sum(not isinstance(i, Filler) for i in batch) for batch in step]
        assert all(real_rows) or sum(real_rows) < world_size
    for step in zip(*batches, strict=True):  # a rank without rows only where they are too few
        real_rows = [sum(not isinstance(i, Filler) for i in batch) for batch in step]
        assert all(real_rows) or sum(real_rows) < world_size
    if world_size == 1 and not filler:
        assert not any(isinstance(i, Filler) for i in rows)


@given(LENGTHS.filter(bool), SIZES, SIZES, RANKS, st.integers(0, 3))
@settings(deadline=None)  # the machine may be busy
def test_training_has_every_row_and_fixed_sizes(
    lengths, num_buckets, batch_size, world_size, epoch
):
    ranks = samplers(lengths, num_buckets, batch_size, world_size, shuffle=True, seed=7)
    for sampler in ranks:
        sampler.set_epoch(epoch)
    batches = [list(sampler) for sampler in ranks]
    assert batches == [list(sampler) for sampler in ranks], "the same epoch, another order"
    assert {len(b) for b in batches} == {len(ranks[0])}
    counts = Counter(i for of_rank in batches for batch in of_rank for i in batch)
    assert set(counts) == set(range(len(lengths)))
    for batch in (batch for of_rank in batches for batch in of_rank):
        assert len(batch) == batch_size
        assert not any(isinstance(i, Filler) for i in batch)
        assert len({bucket_of(lengths[i], ranks[0].buckets) for i in batch}) == 1


@given(LENGTHS.filter(bool), SIZES, SIZES, RANKS, st.data())
@settings(deadline=None)  # the machine may be busy
def test_a_state_and_what_is_left_make_the_epoch(lengths, num_buckets, size, world_size, data):
    (whole, *_) = samplers(lengths, num_buckets, size, world_size, shuffle=True)
    whole.set_epoch(2)
    expected = list(whole)
    stop = data.draw(st.integers(0, len(expected)))
    iterator = iter(whole)
    head = [next(iterator) for _ in range(stop)]
    state = pickle.loads(pickle.dumps(whole.state_dict())) if stop else None
    (rest, *_) = samplers(lengths, num_buckets, size, world_size, shuffle=True)
    if state is None:
        rest.set_epoch(2)
    else:
        rest.load_state_dict(state)
        assert rest.epoch == (3 if stop == len(expected) else 2)
        assert len(rest) == len(expected)
    if stop == len(expected):
        whole.set_epoch(3)
        assert list(rest) == list(whole)
    else:
        if state is not None:
            assert rest.state_dict() == state
            rest.set_epoch(2)  # as the training loop does once more
        assert head + list(rest) == expected
        assert list(rest) == expected, "the next iteration is whole again"


def test_another_epoch_begins_at_its_start():
    (sampler,) = samplers(list(range(20)), 2, 3, 1, shuffle=True)
    iterator = iter(sampler)
    next(iterator)
    state = sampler.state_dict()
    sampler.load_state_dict(state)
    sampler.set_epoch(1)
    assert len(list(sampler)) == len(sampler)
    assert list(sampler) != list(samplers(list(range(20)), 2, 3, 1, shuffle=True)[0])


def test_drop_last_drops_the_rest_of_each_bucket_only():
    lengths = [4] * 7 + [8] * 5
    (sampler,) = samplers(lengths, 2, 3, 1, drop_last=True)
    assert list(sampler) == [[7, 8, 9], [0, 1, 2], [3, 4, 5]]
    two = samplers(lengths, 2, 3, 2, drop_last=True, shuffle=True)
    assert [len(list(sampler)) for sampler in two] == [1, 1] == [len(s) for s in two]
    kept = Counter(i for sampler in two for batch in sampler for i in batch)
    assert len(kept) == 6
    assert max(kept.values()) == 1


def test_ranks_share_a_bucket_at_almost_every_step():
    lengths = [4] * 50 + [8] * 50 + [16] * 50
    ranks = samplers(lengths, 3, 4, 3, shuffle=True)
    steps = list(zip(*ranks, strict=True))
    mixed = [s for s in steps if len({bucket_of(lengths[b[0]], [4, 8, 16]) for b in s}) > 1]
    assert len(steps) == 13
    assert len(mixed) <= 1


def test_too_few_batches_for_the_ranks_are_halved():
    assert [list(s) for s in samplers([4] * 3, 1, 8, 2)] == [
        [[0, 1, *[1] * 6]],
        [[2, *[2] * 7]],
    ]
    (first,), (second,), (third,) = (list(s) for s in samplers([4], 1, 2, 3))
    assert [type(i) for i in first] == [int, Filler]
    assert [type(i) for i in second + third] == [Filler] * 4


def test_a_token_budget_gives_each_bucket_its_batch_size():
    sampler = BucketBatchSampler(
        [4] * 20 + [8] * 20 + [40] * 2, [4, 8, 40], tokens_per_batch=32, fill="filler"
    )
    assert sampler.batch_sizes == [8, 4, 1]
    assert [len(batch) for batch in sampler] == [1] * 2 + [4] * 5 + [8] * 3
    assert sampler.batch_size == 8


def test_the_seed_and_the_epoch_make_the_order():
    def batches(seed, epoch):
        sampler = BucketBatchSampler(list(range(30)), [10, 30], 4, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(0, 1) == batches(0, 1)
    assert len({str(batches(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_too_long_rows():
    with pytest.raises(ConfigurationError, match=r"row 1 has 9 tokens.*too_long='truncate'"):
        BucketBatchSampler([3, 9], [4, 8], 2)
    sampler = BucketBatchSampler([3, 9], [4, 8], 2, too_long="truncate")
    assert list(sampler) == [[1], [0]]


@pytest.mark.parametrize(
    "make", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_copies(make):
    (sampler,) = samplers([4] * 7, 1, 2, 1)
    other = make(sampler)
    assert list(other) == list(sampler)
    assert other.batch_size.sampler is other
    assert isinstance(pickle.loads(pickle.dumps(Filler(3))), Filler)


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        (([1], None, 2), {}, "needs buckets"),
        (([1], [0], 2), {}, "buckets must be one or more whole numbers above 0"),
        (([1], [4]), {}, "either batch_size or tokens_per_batch"),
        (([1], [4], 2), {"tokens_per_batch": 8}, "either batch_size or tokens_per_batch"),
        (([1], [4], 0), {}, "batch_size must be 1 or more, but it is 0"),
        (([1], [4]), {"tokens_per_batch": 0}, "tokens_per_batch must be 1 or more"),
        (([1], [4], 2.5), {}, r"batch_size must be 1 or more, but it is 2\.5"),
        (([1], [4], "2"), {}, "batch_size must be 1 or more, but it is '2'"),
        (([1], [4]), {"tokens_per_batch": 8.5}, "tokens_per_batch must be 1 or more"),
        (([1], [4], 2), {"seed": None}, "seed must be 0 or more, but it is None"),
        (([1], 4, 2), {}, "buckets must be one or more whole numbers above 0, but they are 4"),
        (([1], [4], 2), {"fill": "wrap"}, "fill must be repeat, filler or none"),
        (([1], [4], 2), {"seed": -1}, "seed must be 0 or more"),
        (([1], [4], 2), {"rank": 0}, "both rank and world_size"),
        (([1], [4], 2), {"rank": 2, "world_size": 2}, "rank must be from 0 to 1"),
        (([1], [4], 2), {"too_long": "cut"}, "too_long must be raise or truncate"),
        (([], [4], 2), {"shuffle": True}, "there are no rows to train on"),
    ],
)
def test_wrong_arguments(arguments, options, text):
    with pytest.raises(ConfigurationError, match=text):
        BucketBatchSampler(*arguments, **options)


def test_nothing_left_to_train_on():
    sampler = BucketBatchSampler([4, 4, 8], [4, 8], 4, shuffle=True, drop_last=True)
    with pytest.raises(ConfigurationError, match=r"drop_last=True leaves nothing .* \[2, 1\]"):
        len(sampler)


def test_no_fill_on_several_ranks():
    sampler = BucketBatchSampler([4] * 3, [4], 2, fill="none", rank=0, world_size=2)
    with pytest.raises(ConfigurationError, match=r"fill='none' is for one rank, but there are 2"):
        list(sampler)


def test_a_state_of_other_data():
    (sampler,) = samplers([4] * 9, 1, 2, 1)
    next(iter(sampler))
    state = sampler.state_dict()
    (other,) = samplers([4] * 9, 1, 3, 1)
    with pytest.raises(
        ConfigurationError, match=r"middle of epoch 0: batch_sizes was \[2\] and is \[3\] now"
    ):
        other.load_state_dict(state)
    other.load_state_dict(state | {"num_batches_yielded": 5})
    assert other.epoch == 1
