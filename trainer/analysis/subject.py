"""What a reading is handed, and what it gives back."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from resforge.spec import ModelSpec
from resforge.storage import Manifest
from trainer.data.image_set import ImageSet
from trainer.data.transforms import Normalisation


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

    def to(self, device: torch.device) -> Self:
        """The same on another device. The network moves as a module does: in place."""
        owner = getattr(self.normalise, "__self__", None)
        normalise = owner.to(device).normalise if isinstance(owner, Normalisation) else self.normalise
        return replace(self, network=self.network.to(device), normalise=normalise, device=device)

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


class Piece(Protocol):
    """What is done to an item, on a device; None: the subject's own."""

    def __call__(self, item: Any, /, *, device: torch.device | None = None) -> Any: ...


class Spread(Protocol):
    """Applies a function to items, perhaps on several workers; results come in the order of the items.

    The function and the items must be picklable, and hold nothing on a GPU that a worker may not have: the function is
    one of a module, bound by functools.partial. A worker tells it the device that it has.
    """

    def __call__(self, function: Piece, items: Iterable[Any]) -> Iterator[Any]: ...


def here(function: Piece, items: Iterable[Any]) -> Iterator[Any]:
    """A Spread over this process alone."""
    return map(function, items)
