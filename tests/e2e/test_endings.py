"""Jobs that end otherwise: cancelled, waiting for what will never be there, and failed for a reason that is told."""

import json
import subprocess
import sys

import pytest

from resforge.client import Client, NotFound
from resforge.s3 import ObjectStore
from tests.e2e.following import SMALL, reach
from tests.embedded import CLI, EmbeddedStack
from tests.services.local.waiting import until

pytestmark = pytest.mark.stack


def test_a_cancelled_job_stops_at_a_step_and_leaves_a_checkpoint(client: Client, objects: ObjectStore) -> None:
    job = client.submit({**SMALL, "training": {**SMALL["training"], "steps": 5000}})
    reach(client, job.id, 10)
    client.cancel(job.id)
    job = client.wait(job.id, 90)
    assert (job.state, job.reason) == ("CANCELLED", "CancelledByUser")
    (attempt,) = client.attempts(job.id)
    assert attempt.state == "STOPPED"
    last = client.checkpoint(job.id, "latest")
    assert job.progress is not None
    assert last.step == job.progress.step < 5000

    prefix = f"default/{job.id}/"
    stored = len(objects.list_objects(prefix))
    assert client.delete(job.id).objects_removed == stored > 0
    assert objects.list_objects(prefix) == []
    with pytest.raises(NotFound):
        client.job(job.id)


def test_a_loss_that_is_not_finite_fails_the_job_and_keeps_the_last_good_checkpoint(client: Client) -> None:
    # Weight decay times the rate is 1000: weights grow a thousandfold each step, behind a quiet start.
    optim = {"lr": 1000, "weight_decay": 1, "schedule": {"kind": "constant", "warmup_steps": 20, "warmup_lr": 0.01}}
    job = client.wait(client.submit({**SMALL, "optim": optim, "scaling": {"workers": 1}}).id, 120)
    assert (job.state, job.reason) == ("FAILED", "NonFiniteLoss")
    assert "optim.lr" in job.message
    assert client.checkpoint(job.id, "latest").step >= 14
    assert job.attempts == 1


def test_a_gang_that_never_fits_waits_and_says_why(client: Client) -> None:
    training = {**SMALL["training"], "global_batch": 64}
    job = client.submit({**SMALL, "training": training, "scaling": {"workers": 64}})
    waiting = until(lambda: (found := client.job(job.id)).reason and found, what="a reason")
    assert (waiting.state, waiting.reason) == ("QUEUED", "Unschedulable")
    assert "64" in waiting.message
    client.cancel(job.id)
    assert client.wait(job.id, 30).state == "CANCELLED"


def test_a_data_set_that_is_not_what_was_registered_fails_at_once(stack: EmbeddedStack, client: Client) -> None:
    command = [
        sys.executable,
        "-m",
        "services",
        "datasets",
        "add",
        "gone",
        "--format",
        "cifar10",
        "--location",
        "/nonexistent/cifar",
        "--channels",
        "3",
        "--classes",
        "10",
        "--image-size",
        "32",
    ]
    url = f"sqlite:///{stack.home.database}"
    subprocess.run(command, env=_environment(url), check=True, capture_output=True)
    job = client.wait(client.submit({**SMALL, "data": {"dataset": "gone"}}).id, 120)
    assert (job.state, job.reason, job.attempts) == ("FAILED", "InvalidData", 1)
    assert "/nonexistent/cifar" in job.message


def test_the_command_line_waits_for_a_job_and_tells_its_end_by_the_exit_code(stack: EmbeddedStack) -> None:
    command = [*CLI, "--home", str(stack.path), "submit", "--recipe", "digits/resnet-20", "--workers", "1",
               "--set", "training.epochs=1", "--set", "optim.lr=0.05", "--watch", "--json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout.splitlines()[-1])
    assert job["state"] == "SUCCEEDED"
    assert job["spec"]["optim"]["lr"] == 0.05
    assert job["spec"]["training"]["epochs"] == 1


def _environment(database_url: str) -> dict[str, str]:
    import os

    return {**os.environ, "RESFORGE_DATABASE_URL": database_url, "RESFORGE_S3_BUCKET": "unused"}
