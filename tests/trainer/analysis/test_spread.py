"""Spreading over Ray tasks: what travels, and where it computes."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from resforge.spec import ScalingSpec
from trainer import ray_tasks


@pytest.mark.stack
def test_a_function_is_stored_once_for_all_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    pickled: list[None] = []

    def told(item: int, *, device: torch.device) -> tuple[int, str]:
        return item, device.type

    class Heavy:
        def __reduce__(self) -> Any:
            pickled.append(None)
            return partial, (told,)

    with ray_tasks.over_ray(ScalingSpec(workers=1)) as spread:
        assert list(spread(Heavy(), [5, 3, 4, 1])) == [(5, "cpu"), (3, "cpu"), (4, "cpu"), (1, "cpu")]  # type: ignore[arg-type]
    assert len(pickled) == 1


@pytest.mark.stack
def test_what_is_done_comes_first_and_no_more_than_the_workers_are_at_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")

    def slow(item: int) -> tuple[int, int]:
        mark = tmp_path / str(item)
        mark.touch()
        at_work = len(list(tmp_path.iterdir()))
        deadline = time.monotonic() + 60
        while item == 0 and not (tmp_path / "told").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        mark.unlink()
        return item, at_work

    scaling, seen = ScalingSpec(workers=2, cpus_per_worker=0.5), list[tuple[int, int]]()
    for outcome in ray_tasks.each_over_ray(scaling, slow, range(5), every_s=0.2):
        if outcome is not None:
            seen.append(outcome)
        elif len(seen) == 4:  # all but the first, which waits; and a while has passed without a result
            (tmp_path / "told").touch()
    assert [item for item, _ in seen] == [1, 2, 3, 4, 0]
    assert max(at_work for _, at_work in seen) <= 2


@pytest.mark.parametrize(
    ("held", "works", "device"), [([0], True, "cuda"), ([0], False, "cpu"), ([], True, "cpu")], ids=str
)
def test_a_task_computes_on_the_gpu_that_it_holds(
    held: list[int], works: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_tasks.ray, "get_gpu_ids", lambda: held)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: works)
    given: list[torch.device | None] = []

    def note(_item: Any, /, *, device: torch.device | None = None) -> None:
        given.append(device)

    ray_tasks._apply(note, 0, threads=1)
    assert given == [torch.device(device)]
