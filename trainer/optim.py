"""The optimiser and the learning rate over the steps."""

import math
from typing import Any

import torch
from torch import nn

from resforge.spec import OptimSpec
from trainer.schedule import BEGUN, ScheduleState, cut_rate, warm_up_end


def learning_rate(optim: OptimSpec, step: int, total_steps: int, state: ScheduleState = BEGUN) -> float:
    """The rate for optimiser step `step` (from 0) of `total_steps`.

    `step` divides at fractions of the whole run (He et al. 2015, section 4.2: at 32k and 48k of 64k iterations);
    `cosine` falls from the full rate, behind the warm-up, to zero at the end; `plateau` has the cuts of `state`.
    """
    schedule = optim.schedule
    warm = warm_up_end(schedule, state)
    if warm is None or step < warm:
        return schedule.warmup_lr if schedule.warmup_lr is not None else optim.lr * (step + 1) / schedule.warmup_steps
    if schedule.kind == "step":
        passed = sum(step >= round(milestone * total_steps) for milestone in schedule.milestones)
        return optim.lr * schedule.gamma**passed
    if schedule.kind == "cosine":
        length = max(1, total_steps - warm)
        return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / length))
    return cut_rate(optim, state) if schedule.kind == "plateau" else optim.lr


def build_optimizer(optim: OptimSpec, network: nn.Module) -> torch.optim.SGD:
    """SGD with momentum over the parameters that have a gradient.

    Weight decay is on every one of them, as the paper has it (section 3.4); without `decay_norm_and_bias` it is on
    the weights of convolutions and linear layers alone (He et al. 2019, section 3.1). On a GPU one kernel updates many
    weights at once, unless gradients are clipped, which Lightning does not do before such a step.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trained}]
    if not optim.decay_norm_and_bias:
        # Batch norm's two and a bias hold one number a channel; any other weight has a row for each.
        groups = [
            {"params": [parameter for parameter in trained if parameter.dim() > 1]},
            {"params": [parameter for parameter in trained if parameter.dim() <= 1], "weight_decay": 0.0},
        ]
    fused = optim.clip_norm is None and all(parameter.is_cuda for parameter in trained)
    return torch.optim.SGD(
        groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, nesterov=optim.nesterov,
        fused=fused or None,
    )  # fmt: skip


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take up an optimiser's saved state, but go on in this device's way of computing a step."""
    own = [group["fused"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, fused in zip(optimizer.param_groups, own, strict=True):
        group["fused"] = fused
