"""Evaluation of a network, and of a checkpoint that was pulled into a folder: every image once, one centred view."""

import hashlib
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from resforge.jobs import DatasetInfo
from resforge.metrics import EvalPoint
from resforge.storage import INPUT, MANIFEST, WEIGHTS, CorruptCheckpoint, Manifest
from trainer.data.files import StoreFactory
from trainer.data.image_set import ImageSet
from trainer.data.loader import eval_loader
from trainer.data.sets import open_dataset
from trainer.data.transforms import Normalisation
from trainer.errors import InvalidData
from trainer.sources import network_of

# Data that come with the trainer, so that a checkpoint of theirs is evaluated without being told where they lie.
BUILT_IN = ("digits", "synthetic")


@dataclass(frozen=True)
class EvalTotals:
    """Sums over images, which add up over the ranks that evaluated a share each. `loss_sum` is in nats."""

    loss_sum: float = 0.0
    correct1: int = 0
    correct5: int = 0
    images: int = 0

    def __add__(self, other: Self) -> Self:
        return self.from_tensor(self.tensor() + other.tensor())

    def tensor(self) -> Tensor:
        """(4,) float64, to be summed over ranks; counts are exact up to 2^53."""
        return torch.tensor([self.loss_sum, self.correct1, self.correct5, self.images], dtype=torch.float64)

    @classmethod
    def from_tensor(cls, sums: Tensor) -> Self:
        loss_sum, *counts = sums.tolist()
        return cls(loss_sum, *map(int, counts))

    def point(self, *, attempt: int, step: int, epoch: int, split: str = "test") -> EvalPoint:
        """The means over all images, as they are reported. A loss that is not finite is left out."""
        images = max(self.images, 1)
        return EvalPoint(
            at=datetime.now(UTC),
            attempt=attempt,
            step=step,
            epoch=epoch,
            split=split,  # type: ignore[arg-type]
            loss=self.loss_sum / images if math.isfinite(self.loss_sum) else None,
            top1=self.correct1 / images,
            top5=self.correct5 / images,
            images=self.images,
        )


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    normalise: Callable[[Tensor], Tensor],
    device: torch.device,
    *,
    precision: str = "auto",
) -> EvalTotals:
    """Sum up what a network makes of a loader's images. The network is left in the mode that it was in.

    Args:
        network: on `device`; (N, C, H, W) float -> (N, classes) logits.
        loader: batches of (N, H, W, C) uint8 images and (N,) int64 labels.
        normalise: (N, H, W, C) uint8 -> (N, C, H, W) float on `device`, as the network was trained to see images.
        device: where to compute.
        precision: as in the spec: "fp32", "bf16", or "auto", which is bf16 on a GPU and fp32 on a CPU.
    """
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    training = network.training
    network.eval()
    try:
        with autocast(device, precision):
            for images, labels in loader:
                logits = network(normalise(images.to(device, non_blocking=True))).float()
                sums += _sums(logits, labels.to(device, non_blocking=True))
    finally:
        network.train(training)
    return EvalTotals.from_tensor(sums)


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    loss = F.cross_entropy(logits.double(), labels, reduction="sum")
    # With fewer than five classes, the best five are all of them.
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([loss, hits[:, 0].sum(), hits.sum(), loss.new_tensor(len(labels))])


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """bf16 where the precision asks for it on this device; else nothing."""
    if precision == "bf16" or (precision == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def load_network(directory: Path) -> tuple[nn.Module, Manifest, Normalisation]:
    """The network of a checkpoint folder in evaluation mode, its manifest, and how it sees images.

        network, manifest, normalisation = load_network(Path("checkpoint"))
        logits = network(normalisation.normalise(images))      # (N, H, W, C) uint8

    Raises:
        CorruptCheckpoint: the folder lacks a file, or one is not what was written.
    """
    manifest, parts = _read(directory)
    network = network_of(manifest, parts[WEIGHTS])
    return network, manifest, Normalisation.from_state(load_tensors(parts[INPUT]))


def _read(directory: Path) -> tuple[Manifest, dict[str, bytes]]:
    """A folder's manifest and parts, every part that is there verified. Only those for people are needed."""
    path = directory / MANIFEST
    if not path.is_file():
        raise CorruptCheckpoint(f"{directory} has no {MANIFEST}; expected a folder that `resforge pull` filled")
    manifest = Manifest.parse(path.read_bytes())
    parts = {}
    for part in manifest.parts:
        file = directory / part.name
        if not file.is_file():
            continue
        data = file.read_bytes()
        if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
            raise CorruptCheckpoint(
                f"{file} is not what was written: it has {len(data)} bytes where the manifest says {part.size}"
                if len(data) != part.size
                else f"{file} is not what was written: its SHA-256 differs from the manifest's"
            )
        parts[part.name] = data
    if missing := [name for name in (WEIGHTS, INPUT) if name not in parts]:
        raise CorruptCheckpoint(f"{directory} lacks {', '.join(missing)}")
    return manifest, parts


def evaluate_checkpoint(
    directory: Path,
    *,
    location: str | None = None,
    batch: int = 256,
    device: torch.device | None = None,
    precision: str = "auto",
    store_factory: StoreFactory | None = None,
    cache_dir: Path | None = None,
) -> EvalPoint:
    """Evaluate a checkpoint folder on the held-out images of its data set.

    Args:
        directory: a folder with manifest.json and the parts beside it.
        location: the folder or s3:// prefix where the data lie, for formats that do not come with the trainer.
        batch: images at a time.
        device: a GPU where there is one, if left out.
        precision: as in the spec.
        store_factory: gives the store of a bucket, for data in S3.
        cache_dir: where objects from S3 are kept.

    Raises:
        CorruptCheckpoint: the folder lacks a file, or one is not what was written.
        InvalidData: the data are absent, damaged, or not those that the network was made for.
        StorageError: S3 does not answer, or refuses.
    """
    network, manifest, normalisation = load_network(directory)
    images = held_out(manifest, location, store_factory=store_factory, cache_dir=cache_dir)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = eval_loader(images, batch=batch, pin_memory=device.type == "cuda")
    totals = evaluate(network.to(device), loader, normalisation.to(device).normalise, device, precision=precision)
    return totals.point(attempt=manifest.attempt, step=manifest.step, epoch=manifest.last_epoch)


def held_out(
    manifest: Manifest,
    location: str | None,
    *,
    store_factory: StoreFactory | None = None,
    cache_dir: Path | None = None,
) -> ImageSet:
    """The held-out images of a checkpoint's data set, as its network takes them.

    Raises:
        InvalidData: the data are absent, damaged, or not those that the network was made for.
        StorageError: S3 does not answer, or refuses.
    """
    images = open_dataset(_described(manifest, location), "test", store_factory=store_factory, cache_dir=cache_dir)
    return images.downscaled(manifest.downscale) if manifest.downscale > 1 else images


def _described(manifest: Manifest, location: str | None) -> DatasetInfo:
    """The data set that a manifest names."""
    built_in = manifest.dataset_format in BUILT_IN
    if location is None and not built_in:
        raise InvalidData(
            f"the checkpoint was trained on {manifest.dataset}, whose format is {manifest.dataset_format}; "
            "say where its data lie: a folder or an s3:// prefix"
        )
    return DatasetInfo.model_validate(
        {
            "name": manifest.dataset,
            "format": manifest.dataset_format,
            "location": location,
            "channels": manifest.channels,
            "classes": manifest.classes,
            "image_size": manifest.image_size * manifest.downscale,
            "test_images": manifest.evaluation.images
            if built_in and manifest.evaluation and manifest.evaluation.split == "test"
            else None,
        }
    )
