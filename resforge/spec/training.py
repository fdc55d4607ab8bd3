"""How to train: the optimiser, its schedule, the length and the batches, checkpoints and the gang."""

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from resforge.spec.base import Name, Part


class ScheduleSpec(Part):
    """The learning rate over the steps: a warm-up, then cuts at milestones or where the error stays, or a cosine."""

    kind: Literal["step", "cosine", "constant", "plateau"] = Field(
        default="step",
        description="step: cut at milestones. plateau: cut when the held-out error has stopped falling (He et al. "
        "2015, section 3.4). cosine: fall to 0 by the end. constant: stay.",
    )
    milestones: tuple[float, ...] = Field(
        default=(0.5, 0.75),
        description="Fractions of the whole run at which the rate is multiplied by gamma. "
        "The paper's 32k and 48k of 64k iterations are 0.5 and 0.75.",
    )
    gamma: float = Field(default=0.1, gt=0, le=1, description="What a cut multiplies the rate by.")
    patience: int = Field(
        default=5,
        ge=1,
        le=10_000,
        description="For plateau: cut after so many evaluations in a row without a lower error.",
    )
    threshold: float = Field(
        default=0.001,
        ge=0,
        lt=1,
        description="For plateau: an error is lower when it is below the lowest so far by more than this fraction of "
        "the images.",
    )
    min_lr: float = Field(default=0.0, ge=0, description="For plateau: cuts end at this rate.")
    warmup_steps: int = Field(default=0, ge=0)
    warmup_epochs: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="The length of the warm-up in epochs instead of steps, so that it stays the same when the global "
        "batch changes.",
    )
    warmup_lr: float | None = Field(
        default=None, gt=0, description="The constant rate of the warm-up. Left out: a linear ramp from 0."
    )
    warmup_until_error: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Stay at warmup_lr until the training error of ten steps is below this fraction, for warmup_steps "
        "at most where they are given (He et al. 2015, section 4.2: 0.01 until below 0.8, for 110 layers).",
    )

    @model_validator(mode="after")
    def _milestones_in_order(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)) or any(not 0 < m < 1 for m in self.milestones):
            raise PydanticCustomError(
                "milestones",
                "milestones must be rising fractions of the run, each above 0 and below 1",
                {"field": "milestones"},
            )
        return self

    @model_validator(mode="after")
    def _only_what_applies(self) -> Self:
        # A cosine or a constant has always been accepted with milestones and a gamma that it does not use.
        accepted = {name: field.default for name, field in type(self).model_fields.items()}
        idle = ("milestones",) if self.kind == "plateau" else ("patience", "threshold", "min_lr")
        for name in idle:
            if getattr(self, name) != accepted[name]:
                raise _refusal(
                    name,
                    "{name} does not go with kind {kind}; leave it out, or give kind: {owner}",
                    name=name,
                    kind=self.kind,
                    owner="step" if self.kind == "plateau" else "plateau",
                )
        if self.warmup_epochs is not None and self.warmup_steps:
            raise _refusal("warmup_epochs", "give the warm-up's length in steps or in epochs, not both")
        if self.warmup_until_error is not None and self.warmup_lr is None:
            raise _refusal("warmup_until_error", "warmup_until_error needs warmup_lr, the rate until then")
        return self


class OptimSpec(Part):
    """SGD with momentum, as in the paper (section 3.4)."""

    lr: float = Field(default=0.1, gt=0, le=1000)
    lr_batch: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="The global batch that lr is meant for: the rate grows with training.global_batch in proportion "
        "(Goyal et al. 2017, section 2.1: 0.1 for 256 images). Left out: the rate is lr whatever the batch.",
    )
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=1e-4, ge=0)
    decay_norm_and_bias: bool = Field(
        default=True,
        description="Whether batch norm's parameters and biases decay too. The paper decays every parameter.",
    )
    clip_norm: float | None = Field(default=None, gt=0, description="Clip the gradient's global 2-norm to this.")
    schedule: ScheduleSpec = Field(default_factory=ScheduleSpec)

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise PydanticCustomError("nesterov", "nesterov needs a momentum above 0", {"field": "nesterov"})
        return self

    @model_validator(mode="after")
    def _cuts_end_below_the_rate(self) -> Self:
        if self.lr_batch is None and self.schedule.min_lr >= self.lr:
            raise _refusal("schedule.min_lr", "cuts end below the rate that they begin at, {lr}", lr=self.lr)
        return self

    def resolved(self, global_batch: int, steps_per_epoch: int) -> "OptimSpec":
        """The same for one batch and data set: the rate scaled to the batch, the warm-up in steps.

        A constant `warmup_lr` and `min_lr` are taken as they are.
        """
        schedule, lr = self.schedule, self.lr
        if self.lr_batch is not None:
            lr = lr * global_batch / self.lr_batch
        if schedule.warmup_epochs is not None:
            steps = max(1, round(schedule.warmup_epochs * steps_per_epoch))
            schedule = schedule.model_copy(update={"warmup_epochs": None, "warmup_steps": steps})
        return self.model_copy(update={"lr": lr, "lr_batch": None, "schedule": schedule})


class TrainingSpec(Part):
    """How long to train and on what batches. Exactly one of `epochs` and `steps` is given."""

    global_batch: int = Field(ge=1, le=1_000_000, description="Images in one step, over all workers.")
    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1, description="Optimiser steps (the paper's iterations).")
    seed: int = Field(default=0, ge=0, lt=2**32)
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto: bf16 autocast on a GPU, fp32 on a CPU."
    )
    compile: Literal["auto", "off", "default", "reduce-overhead", "max-autotune"] = Field(
        default="auto",
        description="Compile the step's forward and backward pass, in this mode of torch.compile. auto: default on a "
        "GPU whose host can, and off elsewhere. reduce-overhead: with CUDA graphs. max-autotune: tries kernels out, "
        "for minutes, and workers wait for the slowest of them (10 minutes at most). Where images grow, each of their "
        "sizes is compiled when it comes.",
    )
    gradient_compression: Literal["none", "bf16"] = Field(
        default="none",
        description="bf16: workers add up their gradients in bf16, half the bytes and not the same bits. GPUs only.",
    )
    log_every_steps: int = Field(default=10, ge=1)
    evaluate_every_epochs: int = Field(default=1, ge=1)
    evaluate_train: bool = Field(
        default=False,
        description="At the last step, evaluate the training images as well: every one once, without augmentation.",
    )
    progressive_from: int | None = Field(
        default=None,
        ge=1,
        description="Train on images scaled to this side, in pixels, in the first epoch, and on larger ones from epoch "
        "to epoch, the full size from two thirds of the run on. Evaluations see the full size. Left out: off.",
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise PydanticCustomError(
                "length", "give exactly one of epochs and steps", {"field": "epochs" if self.epochs else "steps"}
            )
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch


class RegularisationSpec(Part):
    """What keeps a network from fitting its training images too closely; all of it off, as in the paper."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Szegedy et al. 2016, section 7.")
    mixup: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Train on weighted means of two images and their labels; the weight is drawn from the distribution "
        "Beta(mixup, mixup) (Zhang et al. 2018). 0: off.",
    )
    cutmix: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Put a rectangle of one image into another, whose share of the pixels, and of the label, is drawn "
        "from Beta(cutmix, cutmix) (Yun et al. 2019). With mixup as well, a coin decides in each step. 0: off.",
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Keep an exponential moving average of the weights, of this decay a step; at first of a lower one, "
        "(1 + step) / (10 + step). It is what is evaluated, and what a checkpoint gives to others.",
    )


class ScalingSpec(Part):
    """The gang of workers: all of them start together or none does."""

    workers: int = Field(default=1, ge=1, le=4096)
    cpus_per_worker: float = Field(default=1.0, gt=0, le=1024)
    gpus_per_worker: int = Field(default=0, ge=0, le=1, description="DDP workers use one GPU each, or none.")
    pool: Name | None = Field(
        default=None, description="The operator's pool of nodes to run on. Left out: the first, where there are pools."
    )


class CheckpointSpec(Part):
    """When to write a checkpoint and which to keep. The last step always has one; the best is always kept."""

    every_epochs: int | None = Field(default=1, ge=1)
    every_steps: int | None = Field(default=None, ge=1)
    keep_last: int = Field(default=3, ge=1, le=1000)


class RetrySpec(Part):
    """How often to try again. A loss of infrastructure and a user's error have budgets of their own."""

    worker_restarts: int = Field(default=8, ge=0, le=1000, description="Dead workers replaced inside an attempt.")
    infrastructure: int = Field(default=8, ge=0, le=1000, description="New attempts after a driver or head was lost.")
    errors: int = Field(default=0, ge=0, le=100, description="New attempts after the training itself failed.")


def _refusal(field: str, message: str, **context: object) -> PydanticCustomError:
    return PydanticCustomError(field.rpartition(".")[2], message, {**context, "field": field})
