"""Checkpoints over HTTP: told from their manifests, and downloaded by presigned URLs from a real S3 server."""

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from resforge.downloads import fetch
from resforge.errors import CorruptDownload, DownloadFailed
from resforge.jobs import Job
from resforge.resources import Checkpoint, CheckpointDownload, DownloadPart
from resforge.s3 import ObjectStore
from resforge.storage import MANIFEST, WEIGHTS, Manifest
from services.store.store import JobStore
from tests.s3 import S3Server
from tests.services.api.harness import AT, Api, evaluation, serve

pytestmark = pytest.mark.stack


def test_lists_them_by_step_with_best_and_latest(api: Api, http: httpx.Client) -> None:
    job = api.retry(api.running())
    api.checkpoint(job, 20, top1=0.9)
    api.checkpoint(job, 10, top1=0.8)
    manifest = api.checkpoint(job, 30, attempt=2, top1=0.85, final=True)
    damaged = api.prefix(job).attempt(1).checkpoint(40) + MANIFEST
    api.objects.put(damaged, manifest.to_bytes().replace(b'"step": 30', b'"step": 40'))
    api.objects.put(api.prefix(job).attempt(2).checkpoint(50) + WEIGHTS, b"no manifest yet")

    answer = http.get(f"/v1/jobs/{job.id}/checkpoints").json()
    assert answer["next_cursor"] is None
    told = [(item["step"], item["attempt"], item["best"], item["latest"], item["final"]) for item in answer["items"]]
    assert told == [(10, 1, False, False, False), (20, 1, True, False, False), (30, 2, False, True, True)]
    last = answer["items"][2]
    assert last["size"] == sum(part["size"] for part in last["parts"]) == manifest.size
    assert last["evaluation"] == evaluation(30, 0.85, attempt=2).model_dump(mode="json")
    assert (last["epoch"], datetime.fromisoformat(last["created_at"])) == (3, AT)
    assert last["parts"] == [part.model_dump() for part in manifest.parts]

    for which, index in (("best", 1), ("latest", 2), ("10", 0), ("0000000020", 1)):
        assert http.get(f"/v1/jobs/{job.id}/checkpoints/{which}").json() == answer["items"][index]
    missing = http.get(f"/v1/jobs/{job.id}/checkpoints/40")
    assert missing.status_code == 404
    assert "10, 20, 30" in missing.json()["detail"]


def test_of_two_attempts_with_one_step_the_newer_is_meant(api: Api, http: httpx.Client) -> None:
    job = api.retry(api.running())
    api.checkpoint(job, 10, top1=0.9)
    api.checkpoint(job, 10, attempt=2, top1=0.9)
    for which in ("10", "latest", "best"):
        assert http.get(f"/v1/jobs/{job.id}/checkpoints/{which}").json()["attempt"] == 2


def test_without_an_evaluation_there_is_no_best(api: Api, http: httpx.Client) -> None:
    job = api.running()
    assert http.get(f"/v1/jobs/{job.id}/checkpoints").json()["items"] == []
    assert "no checkpoint yet" in http.get(f"/v1/jobs/{job.id}/checkpoints/latest").json()["detail"]
    api.checkpoint(job, 10)
    answer = http.get(f"/v1/jobs/{job.id}/checkpoints/best/download")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/checkpoint-not-found")
    assert "latest" in answer.json()["detail"]
    assert http.get(f"/v1/jobs/{job.id}/checkpoints/latest").json()["best"] is False


def test_presigned_urls_give_the_bytes_without_a_key(api: Api, http: httpx.Client) -> None:
    job = api.running()
    manifest = api.checkpoint(job, 10, top1=0.5)
    before = datetime.now(UTC)
    download = CheckpointDownload.model_validate(http.get(f"/v1/jobs/{job.id}/checkpoints/best/download").json())
    assert download.manifest == manifest
    assert Manifest.parse(download.manifest.to_bytes()) == manifest
    assert [part.name for part in download.parts] == [WEIGHTS, "trainer.pt"]
    for part in download.parts:
        content = httpx.get(part.url)
        assert content.status_code == 200
        assert (len(content.content), hashlib.sha256(content.content).hexdigest()) == (part.size, part.sha256)
        assert timedelta(seconds=3590) < part.expires_at - before < timedelta(seconds=3660)
        assert httpx.get(part.url.replace("X-Amz-Signature=", "X-Amz-Signature=0")).status_code == 403


def test_urls_are_made_for_where_the_user_stands(sqlite_store: JobStore, s3: S3Server) -> None:
    s3.store()  # puts the keys into the environment
    public = f"http://localhost:{s3.port}"
    objects = ObjectStore(s3.bucket, endpoint=s3.endpoint, public_endpoint=public)
    with serve(sqlite_store, s3, objects=objects, presign_expires_s=60) as api, api.http() as http:
        job = api.running()
        api.checkpoint(job, 10)
        answer = http.get(f"/v1/jobs/{job.id}/checkpoints/latest/download").json()
        for part in answer["parts"]:
            assert part["url"].startswith(f"{public}/")
            assert "X-Amz-Expires=60&" in part["url"]
            assert httpx.get(part["url"]).status_code == 200


def test_the_client_downloads_and_verifies(api: Api, tmp_path: Path) -> None:
    job = api.running()
    weights = bytes(range(256)) * 10_000
    manifest = api.checkpoint(job, 10, top1=0.5, weights=weights)
    target = tmp_path / "deep" / "down"
    with api.client() as client:
        download = client.download(job.id, "best", target)
    assert download.checkpoint.step == 10
    assert (target / WEIGHTS).read_bytes() == weights
    assert Manifest.parse((target / MANIFEST).read_bytes()) == manifest
    assert sorted(path.name for path in target.iterdir()) == [MANIFEST, "trainer.pt", WEIGHTS]
    with api.client() as client:  # over what is there already
        client.download(job.id, 10, target)
    assert (target / WEIGHTS).read_bytes() == weights


@pytest.mark.parametrize("damage", ["flip", "shorten", "lengthen"])
def test_a_damaged_object_is_noticed_and_not_kept(api: Api, tmp_path: Path, damage: str) -> None:
    job = api.running()
    api.checkpoint(job, 10, weights=b"w" * 100_000)
    key = api.prefix(job).attempt(1).checkpoint(10) + WEIGHTS
    data = bytearray(api.objects.get(key))
    if damage == "flip":
        data[50_000] ^= 1
    api.objects.put(key, bytes(data[:-1] if damage == "shorten" else data + b"w" * (damage == "lengthen")))
    with api.client() as client, pytest.raises(CorruptDownload, match=WEIGHTS) as caught:
        client.download(job.id, "latest", tmp_path)
    assert caught.value.name == WEIGHTS
    assert not (tmp_path / MANIFEST).exists()
    assert [path.name for path in tmp_path.iterdir() if path.name != "trainer.pt"] == []


def test_an_object_that_is_gone_is_told(api: Api, tmp_path: Path) -> None:
    job = api.running()
    api.checkpoint(job, 10)
    api.objects.delete(api.prefix(job).attempt(1).checkpoint(10) + WEIGHTS)
    with (
        api.client() as client,
        pytest.raises(DownloadFailed, match=f"{WEIGHTS}.*{urlsplit(api.objects.endpoint).netloc}.*404"),
    ):
        client.download(job.id, "latest", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_storage_that_does_not_answer_is_told(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resforge.downloads.PAUSES", (0.01,))
    job = api.running()
    api.checkpoint(job, 10)
    with api.client() as client:
        path = f"/v1/jobs/{job.id}/checkpoints/latest/download"
        download = CheckpointDownload.model_validate(client._request("GET", path).json())
        moved = tuple(
            part.model_copy(update={"url": part.url.replace(f":{urlsplit(part.url).port}/", ":9/")})
            for part in download.parts
        )
        monkeypatch.setattr(client, "_get", lambda *_: download.model_copy(update={"parts": moved}))
        with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1:9 does not answer"):
            client.download(job.id, "latest", tmp_path)


NAMES = ["../outside", "/etc/passwd", "a/../../outside", "..", ""]


@pytest.mark.parametrize("name", NAMES)
def test_no_address_is_made_for_what_lies_elsewhere(api: Api, http: httpx.Client, name: str) -> None:
    """Workers write manifests, and run people's code: one may name another project's object as its own part."""
    job = api.running()
    forge(api, job, name)
    for path in ("/10", "/10/download", "/latest/download"):
        assert http.get(f"/v1/jobs/{job.id}/checkpoints{path}").status_code == 404
    assert http.get(f"/v1/jobs/{job.id}/checkpoints").json()["items"] == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_written_outside_the_directory(api: Api, tmp_path: Path, name: str) -> None:
    job = api.running()
    manifest = forge(api, job, name)
    address = api.objects.presign(api.prefix(job).attempt(1).checkpoint(10) + WEIGHTS)
    part = DownloadPart(**manifest.parts[0].model_dump(), url=address.url, expires_at=address.expires_at)
    target = tmp_path / "target"
    target.mkdir()
    checkpoint = Checkpoint(
        attempt=1, step=10, epoch=0, created_at=AT, final=False, best=False, latest=True, size=1, parts=()
    )
    with pytest.raises(CorruptDownload, match="leads out"):
        fetch(CheckpointDownload(checkpoint=checkpoint, manifest=manifest, parts=(part,)), target)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert list(target.iterdir()) == []


def forge(api: Api, job: Job, name: str) -> Manifest:
    """A checkpoint whose manifest is sealed as it should be and names a part so."""
    manifest = api.checkpoint(job, 10)
    parts = (manifest.parts[0].model_copy(update={"name": name}),)
    forged = manifest.model_copy(update={"parts": parts}).sealed()
    api.objects.put(api.prefix(job).attempt(1).checkpoint(10) + MANIFEST, forged.to_bytes())
    return forged
