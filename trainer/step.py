"""How a training step is computed: compiled or as it is written, and what DDP does of it.

Only the training's forward pass is compiled, and with it its backward pass. The network itself stays as it was, so a
state dict has the same names either way, and evaluations, whose batches and images have other sizes, run it as it is.
"""

import inspect
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from resforge.spec import TrainingSpec

logger = logging.getLogger(__name__)

# DDP's option to send out buffers before each forward pass, by its name in this version of torch.
_NAMES = inspect.signature(DistributedDataParallel).parameters
SENDS_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"


def compile_mode(training: TrainingSpec, device: torch.device) -> str | None:
    """The mode to compile the step in, as `torch.compile` names it; None where it is not compiled."""
    asked = training.compile
    if asked == "auto":
        asked = "default" if device.type == "cuda" else "off"
    return None if asked == "off" else asked


def forward_pass(network: nn.Module, normalise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The training's forward pass: (N, H, W, C) uint8 images as stored, perhaps with (N, C) shifts of their colour, or
    (N, C, H, W) floats that are normalised already, to (N, classes) logits. Compiled, stored images are shifted and
    normalised in one pass over them."""

    def forward(images: Tensor, *shifts: Tensor) -> Tensor:
        return network(images if images.is_floating_point() else normalise(images, *shifts))

    return forward


def compiled(
    forward: Callable[..., Tensor], mode: str, *, sizes: int = 1, alone: bool = True, backend: str = "inductor"
) -> Callable[..., Tensor]:
    """The same function compiled, when it is first called with images of a size.

    Each size gets code of its own: what torch makes for sizes left open is slower, and would go on being used once the
    images have their full size.

    Args:
        forward: of `forward_pass`.
        mode: of `torch.compile`.
        sizes: how many sizes of images the run has.
        alone: no other rank waits for gradients. Else the graph is cut where DDP's buckets end, so that these are
            reduced while the backward pass goes on.
        backend: of `torch.compile`; others than inductor have no modes.
    """
    # Stored and normalised images are two kinds of input, and some room. Past the limit torch would run uncompiled.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * sizes + 6)
    torch._dynamo.config.optimize_ddp = not alone
    options = {"mode": mode} if backend == "inductor" else {}
    return torch.compile(forward, dynamic=False, backend=backend, **options)


def why_not_compiled(mode: str, device: torch.device) -> str | None:
    """Try a small block forth and back; why this host can't compile, in one line, or None where it can.

    Whatever goes wrong is the answer: a C++ compiler, Triton or Python's headers may be absent, or the GPU too old.
    """

    def block(x: Tensor, weights: Tensor) -> Tensor:
        return (x + functional.batch_norm(functional.conv2d(x, weights), None, None, training=True).relu()).sum()

    try:
        weights = torch.ones(8, 8, 1, 1, device=device, requires_grad=True)  # nothing random, which a seed decides
        torch.compile(block, dynamic=False, mode=mode)(torch.ones(2, 8, 4, 4, device=device), weights).backward()
    except Exception as error:
        logger.debug("this host can't compile", exc_info=True)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return (lines[0] if lines else type(error).__name__)[:300]
    return None


def keep_compiled(folder: Path) -> None:
    """Let what is compiled be kept in a folder, for the next process on this node, unless the environment names one."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def ddp_options(training: TrainingSpec, *, device: torch.device, compiles: bool, workers: int) -> dict[str, Any]:
    """What Lightning's DDPStrategy is given.

    - Gradients live in the buckets that are reduced, and are not copied there and back.
    - Batch norm's statistics are not sent out before each forward pass. In training nothing reads them; rank 0's, which
      are in a checkpoint, come from rank 0's images in either case, and are sent out before an evaluation.
    - Every weight that is trained has a gradient in every step: frozen ones are not DDP's, a block that drops out is
      multiplied by 0, and what blocks share counts once, when all have added theirs. So the graph is static. It is not
      told so where it is cut by the compiler, with which that is known to fail (pytorch issue 109261).
    - bf16 gradients: NCCL alone, and not of one worker, which sends none.
    """
    options: dict[str, Any] = {
        "gradient_as_bucket_view": True, SENDS_BUFFERS: False, "static_graph": not compiles,
    }  # fmt: skip
    if training.gradient_compression == "bf16" and device.type == "cuda" and workers > 1:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        options["ddp_comm_hook"] = bf16_compress_hook
    return options
