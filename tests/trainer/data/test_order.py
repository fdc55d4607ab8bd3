"""The order in which shards are read: a permutation, whatever the workers, that reads few shards at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.order import LANES, WINDOW, lanes_of, shard_order
from trainer.data.sampler import TrainSampler

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def shards_of(sizes: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


@settings(deadline=None, max_examples=200)
@given(SIZES, st.integers(1, 64), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_is_a_permutation_of_its_own(sizes: list[int], batch: int, seed: int, epoch: int) -> None:
    shards = shards_of(sizes)
    order = shard_order(shards, batch, seed, epoch)
    assert sorted(order.tolist()) == list(range(len(shards)))
    assert np.array_equal(order, shard_order(shards, batch, seed, epoch))
    with pytest.raises(ValueError, match="read-only"):
        order[0] = 1


@settings(deadline=None, max_examples=100)
@given(SIZES, st.sampled_from([4, 8, 12, 48]), st.data())
def test_no_image_is_lost_or_seen_twice_when_the_workers_change_in_the_middle_of_an_epoch(
    sizes: list[int], batch: int, data: st.DataObject
) -> None:
    shards = shards_of([*sizes, batch])
    steps = len(shards) // batch
    change = data.draw(st.integers(0, steps), label="step of the change")

    def seen(workers: int, first: int, last: int) -> list[list[int]]:
        """Of each step, the images of all workers in the order of the batch."""
        runs = [
            iter(
                TrainSampler(
                    len(shards),
                    batch,
                    seed=3,
                    rank=rank,
                    workers=workers,
                    start_step=first,
                    total_steps=last,
                    order=lambda epoch: shard_order(shards, batch, 3, epoch),
                )
            )
            for rank in range(workers)
        ]
        return [[draw.index for share in step for draw in share] for step in zip(*runs, strict=True)]

    before, after = (data.draw(st.sampled_from([1, 2, 4])) for _ in range(2))
    run = seen(before, 0, change) + seen(after, change, steps)
    assert run == seen(1, 0, steps)
    flat = [index for step in run for index in step]
    assert len(set(flat)) == len(flat) == steps * batch


def test_other_epochs_and_seeds_are_other_orders() -> None:
    shards = shards_of([50] * 40)
    orders = {shard_order(shards, 32, seed, epoch).tobytes() for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16])
def test_a_worker_reads_few_shards_at_a_time_and_all_together_each_about_once(workers: int) -> None:
    count, each, batch = 256, 100, 64
    shards = shards_of([each] * count)
    order = shard_order(shards, batch, 0, 0)
    steps = len(shards) // batch
    shares = order[: steps * batch].reshape(steps, workers, batch // workers)
    lanes = LANES // workers
    read = 0
    for rank in range(workers):
        own = [set(shards[step].tolist()) for step in shares[:, rank]]
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for step, used in enumerate(own):
            for shard in used:
                first.setdefault(shard, step)
                last[shard] = step
        open_at = [sum(first[s] <= step <= last[s] for s in first) for step in range(steps)]
        assert max(open_at) <= lanes * (WINDOW + 2)
        # They are needed one by one, and not all lanes' at once.
        new = [sum(first[s] == step for s in first) for step in range(1, steps)]
        assert max(new) <= max(2 * WINDOW, lanes // 2)
        read += len(first)
    assert read <= count + 2 * LANES  # where a lane ends within a shard


def test_batches_mix_images_from_far_apart() -> None:
    shards = shards_of([100] * 256)
    order = shard_order(shards, 64, 0, 0)
    for step in range(0, 300, 50):
        batch = shards[order[step * 64 : step * 64 + 64]]
        assert len(set(batch.tolist())) >= LANES
        assert batch.max() - batch.min() > 100


@pytest.mark.parametrize(("batch", "lanes"), [(1, 1), (7, 7), (17, 1), (256, 16), (96, 16), (100, 10)])
def test_lanes_divide_the_batch(batch: int, lanes: int) -> None:
    assert lanes_of(batch) == lanes
