"""kill -9 of each part at a random moment of a job: it ends in SUCCEEDED, with nothing lost and nothing run twice."""

import contextlib
import os
import random
import signal
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from resforge.client import Client
from resforge.jobs import Attempt, Job
from resforge.resources import TrainEntry
from tests.e2e.following import SMALL, driver, final_weights, reach
from tests.embedded import EmbeddedStack
from tests.services.local.waiting import until
from tests.trainer.test_pod import hook

pytestmark = pytest.mark.stack

LAST = SMALL["training"]["steps"]


def _moments(count: int) -> list[int]:
    """That many steps, in order, at which somebody dies."""
    seed = random.SystemRandom().randrange(2**32)
    steps = sorted(random.Random(seed).sample(range(1, LAST * 2 // 3), count))
    print(f"killed at steps {steps}")
    return steps


def _ended_well(client: Client, job_id: str) -> tuple[Job, list[Attempt], str]:
    """The job, its attempts, and the SHA-256 of the weights that it ended with."""
    job = client.wait(job_id, 240)
    assert job.state == "SUCCEEDED", job.message
    attempts = client.attempts(job_id)
    assert [attempt.number for attempt in attempts] == list(range(1, job.attempts + 1))
    assert [attempt.state for attempt in attempts].count("SUCCEEDED") == 1
    # No attempt begins before the one before has ended.
    for before, after in pairwise(attempts):
        assert before.finished_at is not None
        assert before.finished_at <= after.created_at
    ends = [event for event in client.events(job_id) if event.after == "SUCCEEDED" and event.type == "JobStateChanged"]
    assert len(ends) == 1
    steps = {point.step for point in client.metrics(job_id) if isinstance(point, TrainEntry)}
    assert steps == set(range(1, LAST + 1))
    return job, attempts, final_weights(client, job_id)


def _another(stack: EmbeddedStack, part: str, pid: int) -> bool:
    now = stack.part(part)
    return now["state"] == "ready" and now["pid"] != pid


@pytest.fixture(scope="module")
def services_died(stack: EmbeddedStack) -> tuple[Job, str]:
    """A job whose API and controller were killed, and the weights that it ended with."""
    with stack.client() as client:
        return _without_services(stack, client)


def _without_services(stack: EmbeddedStack, client: Client) -> tuple[Job, str]:
    job = client.submit(SMALL)
    reach(client, job.id, *_moments(1))
    before = {part: stack.part(part)["pid"] for part in ("api", "controller")}
    for pid in before.values():  # both at once: nobody is left to answer or to decide while the training goes on
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(_another(stack, part, pid) for part, pid in before.items()), within_s=60, what="others")
    job, _, weights = _ended_well(client, job.id)
    return job, weights


def test_killed_services_are_not_noticed_by_the_training(services_died: tuple[Job, str]) -> None:
    job, _ = services_died
    assert job.attempts == 1
    assert job.progress is not None
    assert job.progress.restarts == 0


def _importing(stack: EmbeddedStack) -> psutil.Process | None:
    """A worker of a gang that imports torch, before it joins the others."""
    for member in stack.members():
        with contextlib.suppress(psutil.NoSuchProcess, PermissionError, FileNotFoundError):
            loaded = Path(f"/proc/{member.pid}/maps").read_text()
            if "RayTrainWorker" in " ".join(member.cmdline()) and "libtorch" in loaded:
                return member
    return None


def _workers(client: Client, job_id: str) -> list[int]:
    """The process ids that the workers wrote into the job's logs."""
    lines = [line.line.split() for line in client.logs(job_id) if " is rank " in line.line]
    return [int(words[words.index("process") + 1]) for words in lines]


def test_a_killed_worker_is_replaced_a_killed_driver_has_a_successor_and_a_pod_that_ends_costs_no_step(
    stack: EmbeddedStack, client: Client, services_died: tuple[Job, str]
) -> None:
    job = client.submit(SMALL)
    until(lambda: _importing(stack), within_s=120, what="a worker that has not joined yet").kill()
    workers_die, driver_dies, pod_ends = _moments(3)
    reach(client, job.id, workers_die)
    pids = until(lambda: len(found := _workers(client, job.id)) == 2 and found, what="both workers in the logs")
    assert set(pids) <= {member.pid for member in stack.members()}
    os.kill(random.SystemRandom().choice(pids), signal.SIGKILL)
    reach(client, job.id, driver_dies, restarts=1)
    driver(stack, job.id).kill()
    reach(client, job.id, pod_ends, attempt=2)
    pod = stack.path / "pod"
    with hook(pod) as ending:  # what Kubernetes runs in the pod
        assert ending.wait(60) == 0  # driver and workers have ended
    (pod / "ends").unlink()  # the next pod has a folder of its own
    job, (first, second, third), weights = _ended_well(client, job.id)
    assert weights == services_died[1]  # to the last bit what an undisturbed worker ends with
    assert (first.state, first.reason, first.restarts) == ("LOST", "DriverLost", 1)
    assert (second.state, second.reason, second.resume_from) == ("STOPPED", "Preempted", (1,))
    assert (third.resume_from, third.restarts) == ((1, 2), 0)
    told = [event.message for event in client.events(job.id) if event.attempt == 3 and event.type == "Resumed"]
    step = int(second.message.split("stopped at step ")[1].split(",")[0])
    assert told == [f"going on from step {step}, written by attempt 2"]
