"""Spreading a function over Ray tasks, each with the processors that the job asks for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import ray

from resforge.spec import ScalingSpec
from trainer.threads import use_cores

if TYPE_CHECKING:
    from trainer.analysis.subject import Piece, Spread

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def over_ray(scaling: ScalingSpec) -> "Iterator[Spread]":
    """A Spread over the Ray cluster at hand, with at most as many tasks at a time as the job has workers.

    The function goes into Ray's object store once, and from there to each machine. A task whose worker dies is done
    again by Ray, three times at most.
    """
    ray.init(logging_level="warning")
    remote = ray.remote(num_cpus=scaling.cpus_per_worker, num_gpus=scaling.gpus_per_worker)(_apply)
    threads = max(1, int(scaling.cpus_per_worker))

    def spread(function: "Piece", items: Iterable[Any]) -> Iterator[Any]:
        stored = ray.put(function)
        waiting: deque[Any] = deque()
        for item in items:
            if len(waiting) >= scaling.workers:
                yield ray.get(waiting.popleft())
            waiting.append(remote.remote(stored, item, threads))
        while waiting:
            yield ray.get(waiting.popleft())

    try:
        yield spread
    finally:
        ray.shutdown()


def _apply(function: "Piece", item: Any, threads: int) -> Any:
    import torch

    use_cores(threads)
    # The driver may have a GPU where a task has none, and the other way round.
    gpu = bool(ray.get_gpu_ids()) and torch.cuda.is_available()
    return function(item, device=torch.device("cuda" if gpu else "cpu"))


def each_over_ray(
    scaling: ScalingSpec, function: Callable[[T], R], items: Iterable[T], *, every_s: float
) -> Iterator[R | None]:
    """What the function gives for each item, in the order in which it is done; None where `every_s` passed without.

    On the Ray cluster at hand, with at most as many tasks at a time as the job has workers; neither they nor this
    process need torch. A task whose worker dies is done again by Ray, three times at most.
    """
    ray.init(logging_level="warning")
    try:
        remote = ray.remote(num_cpus=scaling.cpus_per_worker)(_call)
        stored, left, waiting = ray.put(function), iter(items), list[Any]()
        while True:
            for item in islice(left, scaling.workers - len(waiting)):
                waiting.append(remote.remote(stored, item))
            if not waiting:
                return
            done, waiting = ray.wait(waiting, num_returns=1, timeout=every_s)
            yield from (ray.get(reference) for reference in done) if done else (None,)
    finally:
        ray.shutdown()


def _call(function: Callable[[T], R], item: T) -> R:
    return function(item)
