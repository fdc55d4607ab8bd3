"""Which image is seen when: the same for any number of workers, from any step, and every image once in evaluation."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.sampler import (
    Draw,
    EvalSampler,
    TrainSampler,
    augmentation_numbers,
    epoch_order,
    limited,
    steps_per_epoch,
)
from trainer.errors import InvalidData

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def runs(draw: st.DrawFn) -> dict[str, int]:
    """A gang, a global batch that divides over it, a data set of at least one global batch, a length."""
    workers = draw(st.integers(1, 8))
    batch = workers * draw(st.integers(1, 6))
    size = batch + draw(st.integers(0, 100))
    return {
        "workers": workers,
        "global_batch": batch,
        "size": size,
        "seed": draw(SEEDS),
        "total_steps": draw(st.integers(1, 30)),
    }


def sampler(run: dict[str, int], **changes: int) -> TrainSampler:
    fields = {**run, **changes}
    return TrainSampler(fields.pop("size"), fields.pop("global_batch"), **fields)


def steps_over_ranks(run: dict[str, int], workers: int) -> list[list[Draw]]:
    """The draws of each step, all ranks' shares one behind the other."""
    shares = [list(sampler(run, workers=workers, rank=rank)) for rank in range(workers)]
    return [list(chain.from_iterable(step)) for step in zip(*shares, strict=True)]


@settings(deadline=None)
@given(runs())
def test_a_step_sees_the_same_images_whatever_the_number_of_workers(run: dict[str, int]) -> None:
    assert steps_over_ranks(run, run["workers"]) == steps_over_ranks(run, 1)


@settings(deadline=None)
@given(runs(), st.data())
def test_a_resumed_run_goes_on_where_the_other_was(run: dict[str, int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, run["total_steps"]))
    rank = data.draw(st.integers(0, run["workers"] - 1))
    whole, rest = sampler(run, rank=rank), sampler(run, rank=rank, start_step=start)
    assert list(rest) == list(whole)[start:]
    assert len(rest) == run["total_steps"] - start
    assert list(rest) == list(rest), "a sampler can be gone through again"


@settings(deadline=None)
@given(runs())
def test_an_epoch_repeats_no_image_and_leaves_less_than_one_batch_out(run: dict[str, int]) -> None:
    per_epoch = steps_per_epoch(run["size"], run["global_batch"])
    steps = steps_over_ranks({**run, "total_steps": 2 * per_epoch}, 1)
    for epoch in range(2):
        draws = list(chain.from_iterable(steps[epoch * per_epoch : (epoch + 1) * per_epoch]))
        assert {draw.epoch for draw in draws} == {epoch}
        seen = [draw.index for draw in draws]
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(range(run["size"]))
        assert run["size"] - len(seen) < run["global_batch"]


@settings(deadline=None)
@given(runs())
def test_shares_are_equal(run: dict[str, int]) -> None:
    share = run["global_batch"] // run["workers"]
    for rank in range(run["workers"]):
        assert all(len(draws) == share for draws in sampler(run, rank=rank))


@settings(deadline=None)
@given(st.integers(1, 300), SEEDS, st.integers(0, 1000))
def test_an_epochs_order_is_a_permutation_by_seed_and_epoch(size: int, seed: int, epoch: int) -> None:
    order = epoch_order(size, seed, epoch)
    assert sorted(order.tolist()) == list(range(size))
    epoch_order.cache_clear()
    assert np.array_equal(order, epoch_order(size, seed, epoch))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(100, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_order_is_not_that_of_the_augmentation() -> None:
    """Both come from one seed; were they one stream, where an image lies in an epoch would say how it is cropped."""
    numbers = augmentation_numbers(100, 7, 3, 1)[:, 0]
    assert numbers.dtype == np.float32
    assert not np.array_equal(np.argsort(numbers), epoch_order(100, 7, 3))
    own = np.random.default_rng([7, 3]).permutation(100)
    assert not np.array_equal(own, epoch_order(100, 7, 3))


def test_shared_tables_can_not_be_written_to() -> None:
    for table in (epoch_order(4, 0, 0), augmentation_numbers(4, 0, 0, 2)):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0


def test_a_data_set_smaller_than_a_batch_is_refused() -> None:
    assert steps_per_epoch(128, 128) == 1
    with pytest.raises(InvalidData, match=r"global batch of 128 images .* there are 100; .*at most 100"):
        steps_per_epoch(100, 128)
    with pytest.raises(InvalidData):
        TrainSampler(100, 128, seed=0, total_steps=1)


def test_batches_that_do_not_divide_and_ranks_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="does not divide over 3 workers"):
        TrainSampler(100, 10, seed=0, workers=3, total_steps=1)
    for rank in (-1, 2):
        with pytest.raises(ValueError, match="is none of 2 workers"):
            TrainSampler(100, 10, seed=0, rank=rank, workers=2, total_steps=1)
        with pytest.raises(ValueError, match="is none of 2 workers"):
            EvalSampler(100, 10, rank=rank, workers=2)
    with pytest.raises(ValueError, match="at least one image"):
        EvalSampler(100, 0)


def test_a_run_that_is_over_has_no_step_left() -> None:
    over = TrainSampler(10, 5, seed=0, start_step=9, total_steps=4)
    assert len(over) == 0
    assert list(over) == []


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 40), st.integers(1, 50))
def test_evaluation_sees_every_image_exactly_once(size: int, batch: int, workers: int) -> None:
    samplers = [EvalSampler(size, batch, rank=rank, workers=workers) for rank in range(workers)]
    seen = Counter(index for each in samplers for indices in each for index in indices)
    assert seen == Counter(range(size))
    shares = [sum(map(len, each)) for each in samplers]
    assert max(shares) - min(shares) <= 1
    for each in samplers:
        assert len(each) == len(list(each))
        assert all(1 <= len(indices) <= batch for indices in each)


@settings(deadline=None)
@given(st.integers(1, 200), SEEDS, st.data())
def test_a_limit_draws_that_many_by_the_seed(size: int, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, size))
    chosen = limited(size, count, seed).tolist()
    assert len(set(chosen)) == count
    assert chosen == sorted(chosen)
    assert set(chosen) <= set(range(size))
    assert chosen == limited(size, count, seed).tolist()


def test_a_limit_above_the_size_is_refused() -> None:
    with pytest.raises(InvalidData, match="asks for 11 training images and there are 10"):
        limited(10, 11, 0)
    assert limited(1000, 10, 1).tolist() != limited(1000, 10, 2).tolist()
