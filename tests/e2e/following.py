"""What end-to-end tests ask of a job again and again."""

from typing import Any

import psutil

from resforge.client import Client
from resforge.jobs import Job
from resforge.storage import WEIGHTS
from tests.embedded import EmbeddedStack
from tests.services.local.waiting import until

# Small enough for seconds, with several epochs of 14 steps and a checkpoint in the middle of each.
SMALL: dict[str, Any] = {
    "model": {"family": "cifar", "depth": 8, "width": 8},
    "data": {"dataset": "digits", "augment": {"pad": 1}, "train_limit": 448},
    "optim": {"lr": 0.1, "schedule": {"kind": "cosine", "warmup_steps": 3}},
    "training": {"global_batch": 32, "steps": 420, "log_every_steps": 1, "seed": 7},
    "scaling": {"workers": 2},
    "checkpoint": {"every_steps": 7, "every_epochs": 1},
}


def reach(client: Client, job_id: str, step: int, *, attempt: int = 1, restarts: int = 0, within_s: float = 150) -> Job:
    """The job once that attempt of it, after so many restarts, has reported `step` steps, while it still runs."""

    def there() -> Job | None:
        job = client.job(job_id)
        assert job.state in ("QUEUED", "STARTING", "RUNNING", "RECOVERING"), f"{job.state}: {job.message}"
        progress = job.progress
        if progress is None or progress.attempt < attempt or progress.restarts < restarts:
            return None
        return job if progress.step >= step else None

    return until(there, within_s=within_s, what=f"step {step} of {job_id}")


def final_weights(client: Client, job_id: str) -> str:
    """SHA-256 of the weights at the job's last step."""
    last = client.checkpoint(job_id, "latest")
    assert last.final
    return next(part.sha256 for part in last.parts if part.name == WEIGHTS)


def driver(stack: EmbeddedStack, job_id: str) -> psutil.Process:
    """The Ray driver of that job, and nothing else that has its name in its command line."""
    return until(
        lambda: next((p for p in stack.members() if _is_driver(p, job_id)), None), what=f"the driver of {job_id}"
    )


def _is_driver(process: psutil.Process, job_id: str) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return "trainer" in words and any(word.endswith(f"/{job_id}") for word in words)
