"""How many threads a process computes with: as many as it has cores, for every pool, set in this one place.

Each pool would else take all cores of the machine, whichever it shares them with; two threads of torch on one core were
measured six times slower than one. What decodes images counts its own threads by the same cores (trainer.data.loader).
"""

import os

# OpenMP's pool, which torch has, and those of the libraries behind numpy.
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def use_cores(cores: float) -> None:
    """Compute with `cores` threads, one at least: torch from now on, and what is yet to be loaded or started."""
    import torch

    threads = max(1, int(cores))
    os.environ.update(environment(threads))
    torch.set_num_threads(threads)


def environment(threads: int) -> dict[str, str]:
    """What tells a process to come."""
    return dict.fromkeys(POOLS, str(threads))
