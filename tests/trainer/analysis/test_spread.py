"""Spreading over Ray tasks: what travels, and where it computes."""

from functools import partial
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
