"""The settings of studies: on which images, how long, and with which depths by default."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Setting = Literal["digits", "small", "fashion-mnist", "cifar10", "imagenet"]
SETTINGS: Mapping[str, str] = {
    "digits": "scikit-learn's digits, tiny networks: seconds of training a job, to see a study run",
    "small": "10,000 images of Fashion-MNIST at 14x14, widths 8/16/32, 6 epochs: minutes on two CPU cores",
    "fashion-mnist": "all of Fashion-MNIST, the paper's CIFAR schedule at a quarter of its length, a GPU for each job",
    "cifar10": "CIFAR-10, the paper's schedule, a GPU for each job",
    "imagenet": "ImageNet, the paper's schedule and its 10-crop evaluation, eight GPUs for each job",
}


@dataclass(frozen=True)
class Bench:
    """A setting.

    Attributes:
        base: the document that every training begins with.
        depths: by study, what is compared where the study names no depths.
        source: for transfer, the `data` of the images that the backbone is trained on.
        target: for transfer, the `data` of the images that it is then taken to.
        warm_from: networks of so many layers and more begin with a low rate (He et al. 2015, section 4.2).
    """

    base: Mapping[str, Any]
    depths: Mapping[str, tuple[int, ...]]
    source: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)
    warm_from: int | None = None


_FEW_CHECKPOINTS = {"every_epochs": None, "keep_last": 1}
_GPU = {"workers": 1, "gpus_per_worker": 1, "cpus_per_worker": 4}
_DIGITS = {"dataset": "digits", "downscale": 1, "train_limit": None, "augment": {"pad": 1, "flip": False}}

BENCHES: Mapping[str, Bench] = {
    "digits": Bench(
        base={
            "model": {"family": "cifar", "width": 8},
            "data": {"dataset": "digits", "augment": {"pad": 1}},
            "training": {"global_batch": 64, "epochs": 3, "evaluate_train": True, "log_every_steps": 5},
            "checkpoint": _FEW_CHECKPOINTS,
        },
        depths={
            "degradation": (8, 14), "identity": (8, 14), "depth": (8, 14, 20), "shortcuts": (8,),
            "preactivation": (8,), "transfer": (8,),
        },
        source={"dataset": "fashion-mnist", "downscale": 2, "train_limit": 1000, "augment": {"pad": 0}},
    ),
    "small": Bench(
        base={
            "model": {"family": "cifar", "width": 8},
            "data": {"dataset": "fashion-mnist", "downscale": 2, "train_limit": 10_000},
            "training": {"global_batch": 128, "epochs": 6, "evaluate_train": True, "log_every_steps": 13},
            "checkpoint": _FEW_CHECKPOINTS,
        },
        depths={
            "degradation": (20, 56), "identity": (20, 56), "depth": (20, 32, 44, 56), "shortcuts": (56,),
            "preactivation": (20, 56), "transfer": (20,),
        },
        target=_DIGITS,
    ),
    "fashion-mnist": Bench(
        base={
            "model": {"family": "cifar"},
            "data": {"dataset": "fashion-mnist", "augment": {"pad": 2, "flip": True}},
            "training": {"global_batch": 128, "steps": 16_000, "evaluate_train": True, "log_every_steps": 100},
            "checkpoint": {"every_epochs": 5, "keep_last": 1},
            "scaling": _GPU,
        },
        depths={
            "degradation": (20, 56, 110), "identity": (20, 56), "depth": (20, 32, 44, 56, 110), "shortcuts": (110,),
            "preactivation": (110,), "transfer": (20,),
        },
        target=_DIGITS,
        warm_from=110,
    ),
    "cifar10": Bench(
        base={
            "model": {"family": "cifar"},
            "data": {"dataset": "cifar10", "augment": {"pad": 4, "flip": True}},
            "training": {"global_batch": 128, "steps": 64_000, "evaluate_train": True, "log_every_steps": 100},
            "checkpoint": {"every_epochs": 10, "keep_last": 1},
            "scaling": _GPU,
        },
        depths={
            "degradation": (20, 56, 110), "identity": (20, 56), "depth": (20, 32, 44, 56, 110, 1202),
            "shortcuts": (110,), "preactivation": (110, 164), "transfer": (20,),
        },
        warm_from=110,
    ),
    "imagenet": Bench(
        base={
            "model": {"family": "imagenet"},
            "data": {"dataset": "imagenet", "augment": {"flip": True, "scale": [256, 480], "colour": 0.1}},
            "optim": {"schedule": {"kind": "plateau"}},
            "training": {"global_batch": 256, "steps": 600_000, "evaluate_train": True, "log_every_steps": 100},
            "checkpoint": {"every_epochs": 1, "every_steps": 1000, "keep_last": 1},
            "scaling": {"workers": 8, "gpus_per_worker": 1, "cpus_per_worker": 8},
        },
        depths={"degradation": (18, 34), "depth": (18, 34, 50, 101, 152), "shortcuts": (34,)},
    ),
}  # fmt: skip
