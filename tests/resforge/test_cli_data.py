"""`resforge data` against a real API; an ingest is taken to its end as controller and trainer would."""

import io
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from resforge.cli.watch import figures
from resforge.jobs import DatasetInfo, Job, JobState
from resforge.metrics import Progress
from resforge.reports import Report
from resforge.storage import REPORT
from tests.resforge.cli_runner import Cli, Done
from tests.services.api.harness import PROJECT, Api, wait_for

S = JobState
INGEST = ("data", "ingest", "s3://photographs/pets", "--name", "pets")


def report(job: Job, broken: int) -> Report:
    values = {
        "location": "s3://bucket/pets", "broken_count": broken,
        "broken": [{"name": f"train/cat/{number}.jpg", "reason": "it is empty"} for number in range(broken)],
    }  # fmt: skip
    return Report(
        kind="ingest", name="ingest", title="pets: 90 training and 10 test images", job=job.id, attempt=1,
        checkpoints=(), dataset="pets", split="train, test", images=100, values=values, seconds=1.5, device="cpu",
        made_at=datetime.now(UTC),
    )  # fmt: skip


def ended(cli: Cli, api: Api, *words: object, end: JobState = S.SUCCEEDED, broken: int = 0) -> Done:
    """What the command left whose job is taken to its end meanwhile."""
    known = {job.id for job in api.client().jobs()}

    def controller() -> None:
        wait_for(lambda: any(job.id not in known for job in api.client().jobs()), "the job")
        [job] = [job for job in api.client().jobs() if job.id not in known]
        job = api.to(api.start(api.store.job(PROJECT, job.id)), S.RUNNING)
        api.objects.put(api.prefix(job).attempt(1).report + REPORT, report(job, broken).to_bytes())
        api.to(job, end)

    acting = threading.Thread(target=controller)
    acting.start()
    done = cli(*words)
    acting.join()
    return done


def test_it_ends_with_what_was_ingested_and_what_was_broken(cli: Cli, api: Api) -> None:
    done = ended(cli, api, *INGEST, "s3://elsewhere/pets", "--shorter-side", 256, broken=22)
    assert done.code == 0, done.err
    assert "pets: 90 training and 10 test images, in 1.5 s" in done.out
    assert "s3://bucket/pets; jobs name them by data.dataset: pets" in done.out
    assert "22 broken and left out:\n  train/cat/0.jpg: it is empty\n" in done.out
    assert "  and 2 more; `resforge report job-" in done.out
    spec = next(api.client().jobs()).spec
    assert (spec.kind, spec.source, spec.target) == ("ingest", "s3://photographs/pets", "s3://elsewhere/pets")
    assert (spec.shorter_side, spec.quality, spec.image_size, spec.shard_bytes) == (256, 90, 224, 64_000_000)


def test_progress_is_told_with_the_time_that_is_left(cli: Cli, api: Api) -> None:
    done = cli(*INGEST, "--detach", "--json")
    job = api.to(api.start(api.store.job(PROJECT, done.json["id"])), S.RUNNING)
    half = Progress(
        at=datetime.now(UTC), attempt=1, step=3, total_steps=6, epoch=0, total_epochs=0, images_per_second=50, eta_s=90
    )
    assert figures(job.model_copy(update={"progress": half})) == "shard 3/6  50 img/s  ETA 1m30s"


def test_a_script_gets_json(cli: Cli, api: Api) -> None:
    done = ended(cli, api, *INGEST, "--json")
    assert (done.code, done.json["report"]["values"]["broken_count"]) == (0, 0)
    done = ended(cli, api, *INGEST, "--json", end=S.FAILED)
    assert (done.code, done.json["state"]) == (1, "FAILED")
    done = cli(*INGEST, "--detach", "--json")
    assert (done.code, done.json["state"], done.json["spec"]["kind"]) == (0, "QUEUED", "ingest")


def test_a_folder_is_named_whole(cli: Cli, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("data", "ingest", "photographs/../pets", "--name", "pets", "--detach")
    assert done.code == 2  # this API reads no folders
    assert f'(given: "{tmp_path}/pets")' in done.err or "RESFORGE_DATA_ROOTS" in done.err


def registered(api: Api, name: str, *, bucket: str | None = None) -> str:
    """A data set with two objects that the project has ingested, and where it lies."""
    key = f"{PROJECT}/datasets/{name}"
    for shard in ("dataset.json", "train-000000.tar"):
        api.objects.put(f"{key}/{shard}", b"bytes")
    dataset = DatasetInfo(
        name=name, format="shards", location=f"s3://{bucket or api.objects.bucket}/{key}", channels=3, classes=2,
        image_size=32, project=PROJECT,
    )  # fmt: skip
    api.store.register_dataset(dataset)
    return key


def test_a_data_set_is_removed_once_a_person_says_so(cli: Cli, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    key = registered(api, "cats/small")
    for said in ("n\n", "\n", ""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        done = cli("data", "remove", "cats/small")
        assert (done.code, done.out.strip()) == (1, "")
        assert "Remove the data set cats/small, for good?" in done.err
    assert len(api.objects.list_objects(f"{key}/")) == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    done = cli("data", "remove", "cats/small")
    assert (done.code, done.out.lstrip()) == (0, "data set cats/small is removed, with 2 objects\n")
    assert api.objects.list_objects(f"{key}/") == []
    done = cli("data", "remove", "cats/small", "--yes")
    assert (done.code, "no dataset 'cats/small' is registered" in done.err) == (3, True)


def test_a_script_removes_a_data_set(cli: Cli, api: Api) -> None:
    registered(api, "dogs")
    done = cli("data", "remove", "dogs", "--yes", "--json")
    assert (done.code, done.json["objects_removed"], done.json["objects_left"]) == (0, 2, False)
    key = registered(api, "dogs", bucket="elsewhere")
    done = cli("data", "remove", "dogs", "--yes")
    assert done.out == f"data set dogs is removed; its objects were left where they lie, at s3://elsewhere/{key}\n"
    done = cli("data", "remove", "digits", "--yes")
    assert (done.code, "data set digits is the operator's" in done.err) == (5, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--name", "Pets!"), "/dataset"),
        (("--name", "pets", "--shorter-side", 100), "below the network's input of 224 pixels"),
        (("/tmp/out", "--name", "pets"), "expected s3://bucket/prefix, since shards lie in object storage"),
        (("--name", "pets", "--shard-mb", 0), "/shard_bytes"),
        ((), "--name"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_sent(cli: Cli, words: tuple[object, ...], message: str) -> None:
    done = cli("data", "ingest", "s3://photographs/pets", *words)
    assert done.code == 2
    assert message in done.err
