"""What a reading is handed, and what it gives back."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from resforge.spec import ModelSpec
from resforge.storage import Manifest
from trainer.data.sets import ImageSet

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Subject:
    """A trained network and the images to show it.

    Attributes:
        network: in evaluation mode, on `device`. A reading that changes it works on a copy.
        model: which network it is.
        manifest: of its checkpoint.
        images: the split and as many images of it as the job asks for.
        normalise: (N, H, W, C) uint8 on `device` -> (N, C, H, W) float, as the network was trained to see images.
        initial: builds the network as it was before training, on the CPU, in training mode.
        device: where to compute.
        seed: of whatever the reading draws.
    """

    network: nn.Module
    model: ModelSpec
    manifest: Manifest
    images: ImageSet
    normalise: Callable[[Tensor], Tensor]
    initial: Callable[[], nn.Module]
    device: torch.device
    seed: int = 0

    @property
    def title(self) -> str:
        """What pictures are headed with."""
        return f"{self.model.name} on {self.manifest.dataset}, step {self.manifest.step}"


@dataclass(frozen=True)
class Outcome:
    """What a reading found.

    Attributes:
        values: figures, of what JSON holds; numbers that are not finite are None.
        units: by the names in `values`, what each is and its unit.
        pictures: PNG files by name.
    """

    values: dict[str, Any]
    units: dict[str, str]
    pictures: dict[str, bytes] = field(default_factory=dict)


class Progress(Protocol):
    """Told how far a reading has come: `done` of `total` pieces of work."""

    def __call__(self, done: int, total: int) -> None: ...


class Spread(Protocol):
    """Applies a function to items, perhaps on several workers; results come in the order of the items.

    The function and the items must be picklable: the function is one of a module, bound by functools.partial.
    """

    def __call__(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]: ...


def here(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """A Spread over this process alone."""
    return map(function, items)
