"""What torch has compiled goes to object storage and is taken up by another process, whose node has nothing of it."""

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from torch.compiler._cache import CacheInfo

from resforge.storage import JobDocument
from tests.s3 import S3Server
from tests.system_packages import CXX_COMPILER, PYTHON_HEADERS
from tests.trainer.gang import DIGITS
from tests.trainer.test_resume import small_spec
from trainer.compiled import Artifacts

pytestmark = pytest.mark.stack

# In a process of its own, since it changes much of torch: compile as a worker does, forget it, and take it up again.
WORKER = """
import os, shutil, sys
import torch
from torch._dynamo.utils import counters
from torch.compiler._cache import CacheArtifactManager
from resforge.s3 import ObjectStore
from resforge.storage import JobDocument
from tests.trainer.gang import DIGITS
from tests.trainer.test_resume import small_spec
from trainer.compiled import Artifacts
from trainer.step import keep_compiled, why_not_compiled

folder, bucket, endpoint = sys.argv[1:]
os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
keep_compiled(folder)
store, cpu = ObjectStore(bucket, endpoint=endpoint), torch.device("cpu")
job = JobDocument(job="job-aaaaaaaaaaaa", project="demo", spec=small_spec(1), dataset=DIGITS)
found, written = [], []
for again in (False, True):
    artifacts = Artifacts(store, job, cpu, workers=1)
    artifacts.load()
    assert why_not_compiled("default", cpu) is None
    artifacts.save()
    cache = counters["inductor"]
    found.append((cache["fxgraph_cache_hit"], cache["fxgraph_cache_miss"]))
    written.append(store.list_objects("demo/compiled/"))
    for graphs in ("fxgraph", "aotautograd"):  # what C++ was made of them stays, and would take long
        shutil.rmtree(os.path.join(folder, graphs))
    counters.clear()
    torch._dynamo.reset()
    CacheArtifactManager.clear()
(hits, misses), again = found
assert hits == 0 and misses > 0 and again == (misses, 0), found
assert len(written[0]) == 1 and written[1] == written[0], "nothing new was made, so nothing is to be written"
"""


@CXX_COMPILER.mark
@PYTHON_HEADERS.mark
def test_what_one_node_compiled_another_takes_up(s3: S3Server, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(tmp_path / "compiled"), s3.bucket, s3.endpoint],
        env={**os.environ, **s3.environment}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_can_not_be_read_is_passed_over(s3: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    job = JobDocument(job="job-aaaaaaaaaaaa", project="other", spec=small_spec(1), dataset=DIGITS)
    artifacts = Artifacts(s3.store(), job, torch.device("cpu"), workers=1)
    artifacts.load()
    assert caplog.text == ""
    s3.store().put(artifacts.key, b"of another version of torch")
    artifacts.load()
    assert f"{artifacts.key} can't be taken up" in caplog.text


def test_the_oldest_go_when_there_are_too_many(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = s3.store()
    store.put("demo/compiled/the-oldest", b"")
    wait_until_later_than(store.list_objects("demo/compiled/")[0].modified)
    for name in ("a", "b"):
        store.put(f"demo/compiled/{name}", b"")
    store.put("demo/compiled-by-others", b"")  # no part of the folder
    job = JobDocument(job="job-aaaaaaaaaaaa", project="demo", spec=small_spec(1), dataset=DIGITS)
    artifacts = Artifacts(store, job, torch.device("cpu"), workers=1)
    made = CacheInfo()
    made.artifacts["inductor"] = ["one"]
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"compiled", made))
    monkeypatch.setattr("trainer.compiled.MOST_KEPT", 3)
    artifacts.save()
    kept = [item.key for item in store.list_objects("demo/compiled")]
    assert kept == sorted(["demo/compiled-by-others", "demo/compiled/a", "demo/compiled/b", artifacts.key])


def wait_until_later_than(moment: datetime) -> None:
    """S3 tells times in seconds."""
    while datetime.now(UTC) < moment + timedelta(seconds=1):
        time.sleep(0.05)
