"""The order in which an epoch visits the images of shards: nearly as random as a permutation, and shard by shard.

The shards are dealt in a drawn order onto lanes of equal length, each lane is shuffled within windows of a few shards,
and a global batch takes equally many images from each lane. Workers take whole lanes where there are as many lanes as
workers or more, so that each reads its own shards, and between them each shard is read about once an epoch. Nothing of
that depends on the number of workers.
"""

import numpy as np

from trainer.data.sampler import SHARDS

LANES = 16
WINDOW = 2  # in shards: a batch is drawn from LANES * WINDOW shards


def shard_order(shards: np.ndarray, global_batch: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch.

    Args:
        shards: (N,) rising whole numbers: the shard of each image.
        global_batch: images of a step, over all workers.
        seed, epoch: what decides, beside those two.

    Returns:
        A read-only permutation, (N,) int64. Its first N // global_batch batches are the epoch; what is behind them is
        left out, other images in each epoch.
    """
    size = len(shards)
    dice = np.random.default_rng([seed, SHARDS, epoch])
    _, starts, counts = np.unique(shards, return_index=True, return_counts=True)
    drawn = dice.permutation(len(starts))
    in_shards = np.repeat(starts[drawn] - np.concatenate([[0], np.cumsum(counts[drawn])[:-1]]), counts[drawn])
    in_shards += np.arange(size)  # shard after shard, as they were drawn
    lanes = lanes_of(global_batch)
    length = size // lanes
    window = max(1, WINDOW * -(-size // len(starts)))
    # Windows of different lanes end at different times, so that new shards are needed one by one.
    shifts = window * np.arange(lanes) // lanes
    within = np.argsort((np.arange(length) + shifts[:, None]) // window + dice.random((lanes, length)), axis=1)
    lane = np.take_along_axis(in_shards[: lanes * length].reshape(lanes, length), within, axis=1)
    steps, each = size // global_batch, global_batch // lanes
    epoch_images = lane[:, : steps * each].reshape(lanes, steps, each).swapaxes(0, 1).reshape(-1)
    order = np.concatenate([epoch_images, lane[:, steps * each :].reshape(-1), in_shards[lanes * length :]])
    order.flags.writeable = False
    return order


def lanes_of(global_batch: int) -> int:
    """How many lanes share a global batch: its largest divisor up to LANES."""
    return max(lanes for lanes in range(1, LANES + 1) if global_batch % lanes == 0)
