"""Evaluation protocols of He et al. 2015, section 3.4: several views of an image, and several networks.

Probabilities are averaged over an image's views and over an ensemble's members. Sets of photographs and sets in memory
go the same way: an image is resized so that its shorter side is `shorter_side(size)` for crops, or a scale.
"""

import copy
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from resforge.metrics import EvalPoint
from resforge.spec import ProtocolSpec
from trainer.data.files import StoreFactory
from trainer.data.image_set import ArraySet, ImageSet
from trainer.data.photographs import EncodedSet
from trainer.data.transforms import Normalisation, resize, shorter_side, to_pixels
from trainer.errors import InvalidData
from trainer.evaluate import EvalTotals, autocast, held_out, load_network
from trainer.sources import Trained

SCALES = (224, 256, 384, 480, 640)
MOST_CLASSES_DRAWN = 30


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found.

    Attributes:
        totals: sums over images, for the averaged probabilities.
        members: the same for each network by itself.
        confusion: (classes, classes) int64, images by class (row) and by the class that they were taken for.
    """

    totals: EvalTotals
    members: tuple[EvalTotals, ...]
    confusion: np.ndarray

    def values(self) -> dict[str, Any]:
        """The figures of the report. Errors are fractions."""
        counts = self.confusion.sum(axis=1)
        right = np.diag(self.confusion)
        values: dict[str, Any] = {
            **_errors(self.totals),
            "class_errors": [
                None if not count else 1 - int(hits) / int(count) for hits, count in zip(right, counts, strict=True)
            ],
        }
        if len(self.members) > 1:
            values["members"] = [_errors(member) for member in self.members]
        if len(self.confusion) <= 100:
            values["confusion"] = self.confusion.tolist()
        return values

    def pictures(self) -> dict[str, bytes]:
        """The confusion matrix of a few classes, or the errors of many, sorted."""
        from matplotlib.figure import Figure

        classes = len(self.confusion)
        figure = Figure(figsize=(5.5, 5), layout="constrained")
        axes = figure.subplots()
        counts = np.maximum(self.confusion.sum(axis=1, keepdims=True), 1)
        if classes <= MOST_CLASSES_DRAWN:
            shares = 100 * self.confusion / counts
            drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
            for row in range(classes):
                for column in range(classes):
                    if self.confusion[row, column] and classes <= 12:
                        colour = "white" if shares[row, column] > 50 else "black"
                        axes.text(
                            column, row, str(self.confusion[row, column]), ha="center", va="center", color=colour,
                            fontsize=8,
                        )  # fmt: skip
            axes.set(xlabel="taken for class", ylabel="class")
            figure.colorbar(drawn, ax=axes, label="% of the class", shrink=0.8)
        else:
            axes.plot(np.sort(100 * (1 - np.diag(self.confusion) / counts[:, 0])))
            axes.set(xlabel="classes, by error", ylabel="top-1 error (%)", ylim=(0, None))
        axes.set_title(f"top-1 error {100 * _errors(self.totals)['top1_error']:.2f} % of {self.totals.images:,} images")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
        return {"confusion.png" if classes <= MOST_CLASSES_DRAWN else "class-errors.png": buffer.getvalue()}


def _errors(totals: EvalTotals) -> dict[str, Any]:
    images = max(1, totals.images)
    loss = totals.loss_sum / images
    return {
        "top1_error": 1 - totals.correct1 / images,
        "top5_error": 1 - totals.correct5 / images,
        "loss": loss if np.isfinite(loss) else None,
    }


@torch.inference_mode()
def evaluate_sources(
    sources: Sequence[Trained],
    images: ImageSet,
    protocol: ProtocolSpec,
    *,
    device: torch.device,
    precision: str = "auto",
    batch: int = 256,
    train_images: ImageSet | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Evaluated:
    """Evaluate one network, or an ensemble, on every image exactly once.

    Args:
        sources: the networks; left as they are.
        images: what to show them.
        protocol: which views.
        device: where to compute.
        precision: "fp32", "bf16", or "auto", which is bf16 on a GPU and fp32 on a CPU.
        batch: images at a time.
        train_images: for `protocol.recompute_batch_norm`.
        progress: called with the images done and all of them.

    Raises:
        InvalidData: the networks do not agree in classes or inputs, or the images are none of theirs.
    """
    inputs = {(item.manifest.classes, item.manifest.channels, item.manifest.image_size) for item in sources}
    if len(inputs) > 1:
        told = "; ".join(f"{c} classes, {k} channels, {s} pixels" for c, k, s in sorted(inputs))
        raise InvalidData(f"the members of an ensemble must have the same classes and inputs; these have: {told}")
    classes, _, size = next(iter(inputs))
    members = [_Member.of(item, device) for item in sources]
    if protocol.recompute_batch_norm:
        if train_images is None:
            raise ValueError("recomputing batch norm's statistics takes training images")
        for member in members:
            recompute_batch_norm(member.network, train_images, member.normalisation.normalise, device, batch=batch)
    totals, own = EvalTotals(), [EvalTotals() for _ in members]
    confusion = np.zeros((classes, classes), dtype=np.int64)
    with autocast(device, precision):
        for start in range(0, len(images), batch):
            indices = np.arange(start, min(start + batch, len(images)))
            labels = torch.from_numpy(images.labels[indices]).to(device)
            sums = [torch.zeros(len(indices), classes, dtype=torch.float64, device=device) for _ in members]
            views = 0
            for view in views_of(images, indices, protocol, size):
                views += 1
                sums = [total + member.probabilities(view, device) for member, total in zip(members, sums, strict=True)]
            each = [total / views for total in sums]
            mean = torch.stack(each).mean(0)
            totals += _sums(mean, labels)
            own = [before + _sums(found, labels) for before, found in zip(own, each, strict=True)]
            np.add.at(confusion, (labels.cpu().numpy(), mean.argmax(1).cpu().numpy()), 1)
            progress(int(indices[-1]) + 1, len(images))
    return Evaluated(totals, tuple(own), confusion)


def evaluate_folders(
    directories: Sequence[Path],
    views: str,
    *,
    location: str | None = None,
    store_factory: StoreFactory | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> EvalPoint:
    """Evaluate pulled checkpoints, as one or as an ensemble, on the first one's held-out images.

    Args:
        directories: folders with manifest.json and the parts beside it.
        views: centre, ten-crop, or multi-scale.
        location: the folder or s3:// prefix where the data lie, for formats that do not come with the trainer.

    Raises:
        CorruptCheckpoint: a folder lacks a file, or one is not what was written.
        InvalidData: the data are not those that the networks were made for, or the networks do not agree.
        StorageError: S3 does not answer, or refuses.
    """
    members = []
    for directory in directories:
        network, manifest, normalisation = load_network(directory)
        members.append(Trained(network=network, manifest=manifest, normalisation=normalisation))
    first = members[0].manifest
    images = held_out(first, location, store_factory=store_factory, cache_dir=cache_dir)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    protocol = ProtocolSpec.model_validate({"views": views})
    evaluated = evaluate_sources(members, images, protocol, device=device, progress=progress)
    return evaluated.totals.point(attempt=first.attempt, step=first.step, epoch=first.last_epoch)


@dataclass(frozen=True)
class _Member:
    network: nn.Module
    normalisation: Normalisation

    @classmethod
    def of(cls, source: Trained, device: torch.device) -> "_Member":
        network = copy.deepcopy(source.network).to(device).eval()
        return cls(network, source.normalisation.to(device))

    def probabilities(self, view: Sequence[np.ndarray], device: torch.device) -> Tensor:
        """(N, classes) float64, of N images of (h, w, C) uint8; those of one shape pass together."""
        shapes = {pixels.shape for pixels in view}
        groups = [view] if len(shapes) == 1 else [[pixels] for pixels in view]
        found = []
        for group in groups:
            pixels = torch.from_numpy(np.stack(group)).to(device)
            normalise = self.normalisation.resized(*pixels.shape[1:3]).normalise
            found.append(self.network(normalise(pixels)).double().softmax(1))
        return torch.cat(found)


def _sums(probabilities: Tensor, labels: Tensor) -> EvalTotals:
    loss = F.nll_loss(probabilities.clamp_min(1e-300).log(), labels, reduction="sum")
    hits = probabilities.topk(min(5, probabilities.shape[1]), dim=1).indices == labels[:, None]
    return EvalTotals(float(loss), int(hits[:, 0].sum()), int(hits.sum()), len(labels))


def views_of(
    images: ImageSet, indices: np.ndarray, protocol: ProtocolSpec, size: int
) -> Iterator[Sequence[np.ndarray]]:
    """The views of some images, one after the other: for each view, (h, w, C) uint8 of every image.

    Args:
        size: side of the network's input in pixels; crops are of this size unless told otherwise, and scales in
            proportion to it.
    """
    if protocol.views == "centre" and protocol.crop is None:
        yield list(images.test_images(indices))
        return
    pictures = [_picture(images, int(index)) for index in indices]
    size = protocol.crop or size
    if protocol.views == "centre":
        yield [_crop(resize(picture, size), size, 4) for picture in pictures]
        return
    if protocol.views == "ten-crop":
        resized = [resize(picture, shorter_side(size)) for picture in pictures]
        for place in range(5):
            crops = [_crop(picture, size, place) for picture in resized]
            yield crops
            yield [crop[:, ::-1] for crop in crops]
        return
    for scale in protocol.scales or tuple(round(scale * size / 224) for scale in SCALES):
        whole = [to_pixels(resize(picture, scale)) for picture in pictures]
        yield whole
        yield [pixels[:, ::-1] for pixels in whole]


def _picture(images: ImageSet, index: int) -> Image.Image:
    if isinstance(images, EncodedSet):
        return images.image(index)
    assert isinstance(images, ArraySet)
    pixels = images.images[index]
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _crop(picture: Image.Image, size: int, place: int) -> np.ndarray:
    """The corner 0 to 3, or the centre, 4: (size, size, C)."""
    right, low = picture.width - size, picture.height - size
    left, top = ((0, 0), (right, 0), (0, low), (right, low), (right // 2, low // 2))[place]
    return to_pixels(picture.crop((left, top, left + size, top + size)))


@torch.no_grad()
def recompute_batch_norm(
    network: nn.Module,
    images: ImageSet,
    normalise: Callable[[Tensor], Tensor],
    device: torch.device,
    *,
    batch: int = 256,
) -> None:
    """Take batch norm's running statistics anew: the mean over batches of these images, without augmentation.

    The images left over after whole batches are dropped, so that every batch weighs the same.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    batch = min(batch, len(images))
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    for start in range(0, len(images) - batch + 1, batch):
        pixels = torch.from_numpy(images.test_images(np.arange(start, start + batch))).to(device)
        network(normalise(pixels))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
