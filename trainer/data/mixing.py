"""Mixing the images of a batch with each other: mixup and cutmix, on normalised images on their device."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from resforge.spec import RegularisationSpec


@dataclass(frozen=True)
class Mix:
    """How the images of one batch are mixed: each with its partner, all with one weight, as in both publications.

    Attributes:
        partners: (N,), of each image, a permutation.
        weight: of an image and its label; its partner's is 1 - weight.
        box: top, left, bottom and right of the rectangle that is taken from the partner; None for a mean of both.
    """

    partners: np.ndarray
    weight: float
    box: tuple[int, int, int, int] | None = None


def mixes(regularisation: RegularisationSpec) -> bool:
    """Whether images are mixed at all."""
    return regularisation.mixup > 0 or regularisation.cutmix > 0


def draw_mix(regularisation: RegularisationSpec, dice: np.random.Generator, count: int, size: int) -> Mix:
    """How to mix `count` images of `size` x `size` pixels, where the spec asks for it (`mixes`).

    Mixup takes a weighted mean (Zhang et al. 2018). Cutmix pastes a rectangle of the images' own shape with its centre
    anywhere; what lies outside is cut off, and the weight is that of the pixels that stay (Yun et al. 2019).
    """
    mixup, cutmix = regularisation.mixup, regularisation.cutmix
    partners = dice.permutation(count)
    pastes = dice.random() < 0.5 if mixup and cutmix else bool(cutmix)
    alpha = cutmix if pastes else mixup
    weight = float(dice.beta(alpha, alpha))
    if not pastes:
        return Mix(partners, weight)
    side = int(size * np.sqrt(1 - weight))
    top, left = (int(centre) - side // 2 for centre in dice.integers(0, size, 2))
    box = max(top, 0), max(left, 0), min(top + side, size), min(left + side, size)
    pasted = (box[2] - box[0]) * (box[3] - box[1])
    return Mix(partners, 1 - pasted / size**2, box)


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """(N, C, H, W) float, mixed; the images given stay as they are, and so does the order of their memory."""
    partners = images[torch.from_numpy(mix.partners).to(images.device)]
    if mix.box is None:
        return torch.lerp(images, partners, 1 - mix.weight)
    top, left, bottom, right = mix.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
    return mixed


def mixed_loss(logits: Tensor, labels: Tensor, mix: Mix, *, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """The cross-entropy with both labels by their weights, and the labels that weigh more, (N,)."""
    partners = labels[torch.from_numpy(mix.partners).to(labels.device)]
    own, other = (
        functional.cross_entropy(logits, wanted, label_smoothing=label_smoothing) for wanted in (labels, partners)
    )
    return mix.weight * own + (1 - mix.weight) * other, labels if mix.weight >= 0.5 else partners
