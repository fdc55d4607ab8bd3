"""The LightningModule: a network, its loss and its optimiser, and running sums of what is reported.

Nothing here calls `self.log`: each call was measured to cost 0.4 ms of a step, as much as a small network's forward
pass. Sums stay on the device, and `callbacks/telemetry.py` reads them every few steps.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from resforge.spec import OptimSpec, RegularisationSpec
from trainer.average import WeightAverage
from trainer.data.loader import Batch
from trainer.data.mixing import draw_mix, mix_images, mixed_loss, mixes
from trainer.data.progressive import Sizes, scaled
from trainer.data.sampler import mixing_dice
from trainer.optim import build_optimizer, learning_rate
from trainer.schedule import BEGUN, warming_up


class Classifier(pl.LightningModule):
    """Trains `network` by cross-entropy.

    Where images are mixed, the loss is that with both labels, and an image is right when the label that weighs more
    was found. So training accuracies are lower than those of whole images.

    Args:
        network: maps (N, C, H, W) float images to (N, classes) logits.
        normalise: maps (N, H, W, C) uint8 images to (N, C, H, W) floats, on their device, and takes the shifts of their
            colour, (N, C), where a batch has them.
        forward_pass: the network's in training (trainer.step).
        regularisation: what is done against fitting the training images too closely.
        sizes: the side of the training images by the step.
        device: where the network is.
        seed, rank: decide with the step how images are mixed.
        start_step: optimiser steps done before this process began.
        total_steps: of the whole job, by which the learning rate is laid out.
        frozen: batch norm keeps its statistics; parameters without a gradient are the network's own choice.
    """

    def __init__(
        self,
        network: nn.Module,
        normalise: Callable[..., Tensor],
        forward_pass: Callable[..., Tensor],
        optim: OptimSpec,
        regularisation: RegularisationSpec,
        sizes: Sizes,
        *,
        device: torch.device,
        seed: int,
        rank: int,
        start_step: int,
        total_steps: int,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.normalise = normalise
        self.forward_pass = forward_pass
        self.optim = optim
        self.regularisation = regularisation
        self.sizes = sizes
        self.seed, self.rank = seed, rank
        self.step = start_step
        self.total_steps = total_steps
        self.frozen = frozen
        self.average = WeightAverage(network, regularisation.ema) if regularisation.ema else None
        self.schedule = BEGUN
        self.last_lr = self.lr
        # loss x images, top-1 hits, top-5 hits, images: since the last report, on this rank alone. Not a buffer:
        # every rank's are overwritten with rank 0's before an evaluation.
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        # top-1 hits, images: of the window by whose error the warm-up may end, on this rank alone.
        self.window = torch.zeros(2, dtype=torch.float64, device=device)
        self.train()  # Lightning leaves modules in the mode that they are in

    @property
    def lr(self) -> float:
        """The learning rate of the step to come."""
        return learning_rate(self.optim, self.step, self.total_steps, self.schedule)

    @property
    def awaits_error(self) -> bool:
        """Whether the step to come belongs to a warm-up that the training error may end."""
        schedule = self.optim.schedule
        return schedule.warmup_until_error is not None and warming_up(schedule, self.schedule, self.step)

    def evaluated(self) -> AbstractContextManager[None]:
        """Within, the network has the weights that are evaluated: the average, where one is kept."""
        return self.average.applied() if self.average else nullcontext()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels, *shifts = batch
        side, smoothing = self.sizes.at(self.step), self.regularisation.label_smoothing
        as_stored = side == images.shape[1] and not mixes(self.regularisation)
        inputs = (images, *shifts) if as_stored else (scaled(self.normalise(images, *shifts), side),)
        if mixes(self.regularisation):
            dice = mixing_dice(self.seed, self.step, self.rank)
            mix = draw_mix(self.regularisation, dice, len(images), side)
            logits = self.forward_pass(mix_images(*inputs, mix))
            loss, labels = mixed_loss(logits, labels, mix, label_smoothing=smoothing)
        else:
            logits = self.forward_pass(*inputs)
            loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        with torch.no_grad():
            sums = _sums(loss, logits, labels)
            self.sums += sums
            if self.awaits_error:
                self.window += sums[1::2]
        return loss

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        self.last_lr = self.lr
        for group in optimizer.param_groups:
            group["lr"] = self.last_lr
        optimizer.step(closure=optimizer_closure)
        self.step += 1
        if self.average:
            self.average.update(self.step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.optim, self.network)


def _sums(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    images = torch.full_like(loss, len(labels), dtype=torch.float64)
    return torch.stack([loss.double() * images, top[:, 0].sum().double(), top.sum().double(), images])
