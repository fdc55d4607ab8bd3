"""From a folder of photographs to a data set that jobs can name, by the command line and the whole stack."""

import json
import os
import random
import re
import signal
from pathlib import Path

import pytest

from resforge.client import Client
from resforge.resources import TrainEntry
from resforge.s3 import ObjectStore
from tests.e2e.following import final_weights, reach
from tests.embedded import EmbeddedStack
from tests.resforge.cli_runner import Cli
from tests.services.local.waiting import until
from tests.trainer.ingest.photographs import photograph, tree, write
from trainer.data.shards import MANIFEST, read_index, read_manifest

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


def test_photographs_become_a_data_set(
    stack: EmbeddedStack, client: Client, objects: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    files = tree(45, classes=4, held_out=5) | {
        "train/class-1/cut.jpg": photograph(1)[:-90],
        "train/class-2/empty.jpg": b"",
    }
    source = write(tmp_path / "photographs", files)
    cli = Cli(monkeypatch, capsys)
    command = ("--home", stack.path, "data", "ingest", source, "--name", "photographs", "--image-size", 16,
               "--shorter-side", 24, "--shard-mb", 0.02, "--workers", 2)  # fmt: skip
    done = cli(*command)
    assert done.code == 0, done.err
    assert "photographs: 180 training and 20 test images of 4 classes in" in done.out
    assert "2 broken and left out:" in done.out
    assert "train/class-1/cut.jpg: image file is truncated" in done.out
    assert "train/class-2/empty.jpg: it is empty" in done.out
    assert re.search(r"shard \d+/\d+", done.err)
    [job_id] = re.findall(r"^job (\S+)$", done.err, re.MULTILINE)

    job = client.job(job_id)
    assert (job.state, job.attempts, job.dataset, job.message) == ("SUCCEEDED", 1, "photographs", "")
    [info] = [item for item in client.datasets() if item.name == "photographs"]
    assert (info.format, info.classes, info.train_images, info.test_images) == ("shards", 4, 180, 20)
    assert (info.job, info.project) == (job_id, job.project)
    types = [event.type for event in client.events(job_id)]
    assert {"SourceListed", "ImagesBroken", "DatasetIngested"} <= set(types)
    assert "photographs" in cli("--home", stack.path, "datasets").out

    folder = f"{job.project}/datasets/photographs/{job_id}/"
    manifest = read_manifest(objects.get(folder + MANIFEST), "here")
    assert (manifest.images("train"), manifest.broken) == (180, 2)
    shard = manifest.splits["train"][0]
    row = read_index(objects.get(folder + shard.index), shard, "here")[-1]
    assert objects.get_range(folder + shard.name, int(row["offset"]), int(row["size"])).startswith(b"\xff\xd8")

    training = {
        "model": {"family": "cifar", "depth": 8}, "data": {"dataset": "photographs"},
        "training": {"global_batch": 4, "epochs": 1}, "scaling": {"cpus_per_worker": 1000},
    }  # fmt: skip
    admitted = client.submit(training)  # and never runs
    assert admitted.dataset == "photographs"
    client.cancel(admitted.id)
    refused = cli("--home", stack.path, "data", "ingest", source, "--name", "digits", "--json")
    assert (refused.code, "data set digits that this project has not ingested" in refused.err) == (5, True)
    found = json.loads(cli("--home", stack.path, "report", job_id, "--json").out)
    assert found["report"]["values"]["broken_count"] == 2


LAST = 14  # of 11 steps an epoch
RESNET_50 = {
    "model": {"family": "imagenet", "depth": 50},
    "data": {"dataset": "photographs-32", "mean": "channel", "augment": {"flip": True, "scale": [36, 48]}},
    "optim": {"lr": 0.01},
    "training": {"global_batch": 16, "steps": LAST, "log_every_steps": 1, "seed": 7},
    "checkpoint": {"every_steps": 4, "every_epochs": None},
}


def test_resnet_50_trains_from_the_shards_and_a_kill_in_the_middle_of_an_epoch_changes_no_bit(
    stack: EmbeddedStack, client: Client, tmp_path: Path
) -> None:
    source = write(tmp_path / "photographs", tree(45, classes=4, held_out=4))
    ingest = client.submit(
        {"kind": "ingest", "source": str(source), "dataset": "photographs-32", "image_size": 32, "shard_bytes": 20_000}
    )
    assert client.wait(ingest.id, 120).state == "SUCCEEDED"
    whole, killed = (client.submit(RESNET_50) for _ in range(2))
    moment = random.SystemRandom().randrange(5, 9)
    print(f"killed at step {moment}")
    reach(client, killed.id, moment)
    until(lambda: client.checkpoints(killed.id), what="a checkpoint")
    [pid] = [line.line.split() for line in client.logs(killed.id) if " is rank " in line.line]
    os.kill(int(pid[pid.index("process") + 1]), signal.SIGKILL)
    for job in (whole, killed):
        assert client.wait(job.id, 240).state == "SUCCEEDED", client.job(job.id).message
    [resumed] = [event.message for event in client.events(killed.id) if event.type == "Resumed"]
    assert re.match(r"going on from step [48], ", resumed)
    steps = {point.step for point in client.metrics(killed.id) if isinstance(point, TrainEntry)}
    assert steps == set(range(1, LAST + 1))
    assert final_weights(client, killed.id) == final_weights(client, whole.id)
