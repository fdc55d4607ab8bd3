"""A whole ingest, on a real S3 server: what it writes, what it leaves out, and how it goes on where it was cut off."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from resforge.jobs import DatasetInfo
from resforge.reports import Report
from resforge.s3 import ObjectStore
from resforge.spec import IngestSpec
from resforge.storage import REPORT, AttemptDocument, Control, JobDocument, JobPrefix, Result, Stream, read_stream
from tests.s3 import S3Server
from tests.trainer.ingest.photographs import photograph, tar, tarred, tree, write
from trainer.data.shards import MANIFEST, ShardManifest, read_index, read_manifest
from trainer.ingest import work
from trainer.ingest.job import perform
from trainer.settings import TrainerSettings
from trainer.streams import Shipper

SPEC = {"kind": "ingest", "dataset": "pets", "image_size": 16, "shard_bytes": 20_000}


class Bench:
    """A job on a server: `run` performs an attempt of it."""

    def __init__(self, s3: S3Server, job: str, source: Path | str, scratch: Path, **fields: Any) -> None:
        self.s3, self.store, self.scratch, self.job = s3, s3.store(), scratch, job
        self.spec = IngestSpec.model_validate({**SPEC, "source": str(source), **fields})
        self.prefix = JobPrefix.of("demo", job)
        self.folder = f"demo/datasets/pets/{job}/"
        info = DatasetInfo(name="pets", format="shards", channels=3, classes=2, image_size=16)
        self.document = JobDocument(job=job, project="demo", spec=self.spec, dataset=info)

    def run(self, attempt: int = 1) -> Result:
        settings = TrainerSettings(s3_endpoint=self.s3.endpoint, scratch=self.scratch)
        with Shipper(self.store, self.prefix.attempt(attempt)) as shipper:
            result = perform(self.store, self.prefix, self.document, attempt, settings, shipper)
        assert result is not None
        return result

    def report(self, attempt: int = 1) -> Report:
        return Report.model_validate_json(self.store.get(self.prefix.attempt(attempt).report + REPORT))

    def events(self, attempt: int = 1) -> dict[str, dict[str, Any]]:
        lines = read_stream(self.store, self.prefix, Stream.EVENTS, [attempt])
        return {event["type"]: event for event in (json.loads(line) for _, line in lines)}

    def objects(self) -> dict[str, bytes]:
        keys = [item.key for item in self.store.list_objects(self.folder)]
        return {key.removeprefix(self.folder): self.store.get(key) for key in keys}

    def samples(self) -> dict[str, dict[str, tuple[bytes, int]]]:
        """By split and member: each image's bytes and label, read by ranges and checked against tar and manifest."""
        manifest, found = self.manifest(), dict[str, dict[str, tuple[bytes, int]]]()
        for split, shards in manifest.splits.items():
            for shard in shards:
                data = self.store.get(self.folder + shard.name)
                rows = read_index(self.store.get(self.folder + shard.index), shard, "here")
                with tarfile.open(fileobj=io.BytesIO(data)) as file:
                    names = file.getnames()
                    labels = [file.extractfile(name).read() for name in names[1::2]]  # type: ignore[union-attr]
                assert [int(label) for label in labels] == rows["label"].tolist()
                for name, row in zip(names[::2], rows, strict=True):
                    image = self.store.get_range(self.folder + shard.name, int(row["offset"]), int(row["size"]))
                    found.setdefault(split, {})[name] = image, int(row["label"])
        return found

    def manifest(self) -> ShardManifest:
        return read_manifest(self.store.get(self.folder + MANIFEST), "here")


def put(store: ObjectStore, prefix: str, files: Mapping[str, bytes]) -> str:
    for name, data in files.items():
        store.put(f"{prefix}/{name}", data)
    return store.uri(prefix)


def test_class_folders_become_shards_to_the_byte(s3: S3Server, tmp_path: Path) -> None:
    files = tree(30, classes=3, held_out=4)
    bench = Bench(s3, "job-folders", write(tmp_path / "in", files), tmp_path)
    result = bench.run()
    assert result.outcome == "succeeded", result.message
    assert result.dataset is not None
    assert result.dataset.model_dump(exclude={"description", "project", "job"}) == {
        "name": "pets", "format": "shards", "location": f"s3://{s3.bucket}/{bench.folder[:-1]}", "channels": 3,
        "classes": 3, "image_size": 16, "train_images": 90, "test_images": 12,
    }  # fmt: skip
    manifest = bench.manifest()
    assert manifest.classes == ("class-0", "class-1", "class-2")
    assert len(manifest.splits["train"]) > 3
    assert result.step == sum(map(len, manifest.splits.values()))
    samples = bench.samples()
    expected = {
        f"{'train' if name.startswith('train') else 'test'}{name[name.index('/') :]}": (
            data,
            int(name.split("-")[1][0]),
        )
        for name, data in files.items()
    }
    assert {**samples["train"], **samples["test"]} == expected
    report = bench.report()
    assert (report.images, report.values["train_images"], report.values["broken"]) == (102, 90, [])
    assert set(report.values) == set(report.units)
    assert bench.events().keys() == {"SourceListed", "DatasetIngested"}
    assert not list((tmp_path / "ingest").iterdir())


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_tars_give_what_folders_give(s3: S3Server, tmp_path: Path, where: str) -> None:
    files = tree(10, held_out=2)
    folders = Bench(s3, f"job-of-folders-{where}", write(tmp_path / "folders", files), tmp_path)
    assert folders.run().outcome == "succeeded"
    source = write(tmp_path / "in", tarred(files)) if where == "disk" else put(s3.store(), "tars", tarred(files))
    tars = Bench(s3, f"job-of-tars-{where}", source, tmp_path)
    assert tars.run().outcome == "succeeded"
    assert tars.samples() == folders.samples()


def test_the_same_source_gives_the_same_bytes(s3: S3Server, tmp_path: Path) -> None:
    files = tree(12, held_out=3)
    benches = [
        Bench(s3, "job-once", write(tmp_path / "in", files), tmp_path, shorter_side=20),
        Bench(s3, "job-twice", put(s3.store(), "folders", files), tmp_path, shorter_side=20),
    ]
    for bench in benches:
        assert bench.run().outcome == "succeeded"
    once, twice = (bench.objects() for bench in benches)
    assert once == twice
    assert benches[0].manifest().shorter_side == 20


def test_broken_images_are_named_and_left_out(s3: S3Server, tmp_path: Path) -> None:
    files = tree(6) | {
        "train/class-0/empty.jpg": b"",
        "train/class-0/cut.JPEG": photograph(7)[:-100],
        "train/class-1/text.png": b"a text",
        "train/class-1/notes.txt": b"no image by its name",
        "train/class-1/.hidden.jpg": b"",
        "train/class-1/deeper/one.jpg": photograph(9),
        "train/README": b"no class",
        "train/class-1/same.jpg": photograph(8),
        "train/class-1/same.png": photograph(8, kind="PNG"),
    }
    bench = Bench(s3, "job-broken", write(tmp_path / "in", files), tmp_path)
    result = bench.run()
    assert result.outcome == "succeeded"
    values = bench.report().values
    broken = {item["name"]: item["reason"] for item in values["broken"]}
    assert broken.keys() == {"train/class-0/empty.jpg", "train/class-0/cut.JPEG", "train/class-1/text.png"}
    assert broken["train/class-0/empty.jpg"] == "it is empty"
    assert "truncated" in broken["train/class-0/cut.JPEG"]
    assert (values["broken_count"], values["ignored"], bench.manifest().broken) == (3, 2, 3)
    told = bench.events()["ImagesBroken"]
    assert told["data"]["count"] == 3
    assert "train/class-0/empty.jpg" in told["message"]
    samples = bench.samples()["train"]
    assert len(samples) == 14
    assert samples["train/class-1/same.jpg"][0] == files["train/class-1/same.jpg"]
    assert samples["train/class-1/same-2.png"][0] == files["train/class-1/same.png"]


def test_of_a_cut_tar_the_whole_images_are_taken(s3: S3Server, tmp_path: Path) -> None:
    files = tarred(tree(6))
    whole = files["train/class-0.tar"]
    files["train/class-0.tar"] = whole[: len(whole) // 2]
    members = [("./n/a.jpg", photograph(3)), ("link", b""), ("._a.jpg", b"x"), ("README", b"text")]
    files["train/class-2.tar"] = tar(members)
    bench = Bench(s3, "job-cut", write(tmp_path / "in", files), tmp_path)
    assert bench.run().outcome == "succeeded"
    [broken] = bench.report().values["broken"]
    assert broken["name"] == "train/class-0.tar"
    assert "images before that were taken" in broken["reason"]
    assert 0 < sum(label == 0 for _, label in bench.samples()["train"].values()) < 6
    assert "train/class-2/a.jpg" in bench.samples()["train"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train/a/x.txt": b""}, "the class a alone"),
        ({"other/a/x.jpg": b""}, "holds no images"),
        (tree(2) | {"train/class-3/a.jpg": b""}, "no image of train/class-3 can be used; the first that is broken: "
         "train/class-3/a.jpg: it is empty"),
        (tarred(tree(2)) | {"train/class-3.tar": b"no tar"}, "holds no image of train/class-3"),
    ],
)  # fmt: skip
def test_what_can_not_become_a_data_set(
    s3: S3Server, tmp_path: Path, files: dict[str, bytes], message: str, request: pytest.FixtureRequest
) -> None:
    bench = Bench(s3, f"job-not-{abs(hash(message))}", write(tmp_path / "in", files), tmp_path)
    result = bench.run()
    assert (result.outcome, result.reason) == ("failed", "InvalidData")
    assert message in result.message
    assert MANIFEST not in bench.objects()


def test_a_source_or_a_target_that_is_not_there(s3: S3Server, tmp_path: Path) -> None:
    gone = Bench(s3, "job-gone", tmp_path / "nowhere", tmp_path).run()
    assert (gone.reason, f"no folder {tmp_path}/nowhere" in gone.message) == ("InvalidData", True)
    gone = Bench(s3, "job-gone", "s3://no-such-bucket/here", tmp_path).run()
    assert (gone.reason, "no-such-bucket" in gone.message) == ("InvalidData", True)


def test_finished_shards_are_not_made_again(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(s3, "job-resumed", write(tmp_path / "in", tree(40)), tmp_path)
    made: list[str] = []
    real = work.Work.__call__

    def counted(self: work.Work, shard: Any) -> Any:
        if len(made) == 2:
            raise RuntimeError("cut off")
        made.append(shard.name)
        return real(self, shard)

    monkeypatch.setattr(work.Work, "__call__", counted)
    assert bench.run().outcome == "failed"
    assert MANIFEST not in bench.objects()
    first, made[:] = list(made), []
    monkeypatch.setattr(work.Work, "__call__", lambda self, shard: made.append(shard.name) or real(self, shard))
    bench.store.put(bench.prefix.attempt(2).attempt, AttemptDocument(number=2, resume_from=(1,)).to_bytes())
    result = bench.run(2)
    assert result.outcome == "succeeded"
    assert not set(first) & set(made)
    assert len(first) + len(made) == result.step
    assert bench.events(2)["IngestResumed"]["data"] == {"done": 2, "shards": result.step}
    before = bench.objects()
    made[:] = []
    assert bench.run(3).outcome == "succeeded"  # a manifest that is there is no obstacle to the same
    assert (made, bench.objects()) == ([], before)
    images = bench.samples()["train"]
    assert len(images) == 80


def test_another_data_set_is_not_written_over(s3: S3Server, tmp_path: Path) -> None:
    target = f"s3://{s3.bucket}/demo/datasets/mine"
    source = write(tmp_path / "in", tree(3))
    assert Bench(s3, "job-first", source, tmp_path, target=target).run().outcome == "succeeded"
    assert Bench(s3, "job-again", source, tmp_path, target=target).run().outcome == "succeeded"
    other = Bench(s3, "job-other", source, tmp_path, target=target, shorter_side=20).run()
    assert (other.outcome, other.reason) == ("failed", "InvalidData")
    assert f"{target} holds another data set already" in other.message


def test_it_stops_when_it_is_asked_to(s3: S3Server, tmp_path: Path) -> None:
    bench = Bench(s3, "job-stopped", write(tmp_path / "in", tree(3)), tmp_path)
    bench.store.put(bench.prefix.control, Control(desired="stop", generation=2).to_bytes())
    assert bench.run().outcome == "stopped"
    assert bench.objects() == {}


def test_tars_are_looked_into_once(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    real = work.look_into

    def counted(source: Any, class_name: str, name: str, size: int) -> Any:
        looked.append(name)
        return real(source, class_name, name, size)

    monkeypatch.setattr(work, "look_into", counted)
    bench = Bench(s3, "job-looked", write(tmp_path / "in", tarred(tree(3))), tmp_path)
    first = bench.run()
    assert first.outcome == "succeeded"
    assert looked == ["train/class-0.tar", "train/class-1.tar"]
    again = bench.run(2)
    assert (again.outcome, again.dataset, len(looked)) == ("succeeded", first.dataset, 2)
