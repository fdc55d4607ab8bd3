"""The controller: the I/O around `decide`.

Several controllers may run; the one that holds the lease acts. No network I/O happens inside a database transaction:
a tick reads the live jobs, looks at the launcher and at storage, decides, carries out, and only then writes by
compare-and-set. It may die at any point and the next tick, of this controller or another, does what is left: every
external name is deterministic, and everything that is done twice is harmless the second time.
"""

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from types import FrameType
from typing import assert_never

from resforge.jobs import ATTEMPT_TERMINAL, Attempt, Reason
from resforge.s3 import ObjectStore, StorageError
from resforge.storage import AttemptDocument, Control, Document, JobDocument, JobPrefix
from services.controller.decide import (
    ATTEMPTING,
    WAITING,
    Action,
    Apply,
    ForceStop,
    Observed,
    Policy,
    RequestStop,
    Submit,
    decide,
)
from services.controller.fit import FitAnswer, Waiting, admit, driver_needs, gang_of
from services.controller.leadership import Leadership
from services.controller.metrics import ControllerMetrics, watch_capacity
from services.controller.observe import Look, Watch
from services.controller.outcomes import condition, refused
from services.controller.port import serve
from services.controller.sources import Sources, sources_of
from services.errors import Fenced, Stale, StoreUnavailable
from services.launchers.base import Gang, Launcher, LauncherUnavailable, LaunchRefused, LaunchRequest, PoolUnknown
from services.launchers.kuberay import KubeRay
from services.launchers.pools import pools_of
from services.launchers.ray_jobs import RayJobs
from services.launchers.rayjob import House
from services.settings import Settings
from services.store import connect
from services.store.records import Change, JobRecord
from services.store.store import JobStore

logger = logging.getLogger(__name__)

READERS = 8  # attempts looked at side by side; fewer than the ten connections that boto3 keeps


def run(settings: Settings) -> None:
    """Run a controller until SIGTERM or SIGINT."""
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    metrics = ControllerMetrics()
    serve(metrics.registry, metrics.pulse, settings)
    engine = connect(settings.database_url)
    store = JobStore(engine, observe=metrics.database)
    store.check()
    # Short patience: what does not answer now is asked again in the next tick.
    objects = ObjectStore(
        settings.s3_bucket, endpoint=settings.s3_endpoint, timeout_s=5.0, attempts=2, observe=metrics.s3
    )
    launcher = launcher_of(settings)
    try:
        controller = Controller(store, objects, launcher, settings, metrics=metrics)
        watch_capacity(metrics.measured(launcher).capacity, metrics, lambda: controller.leads, stop)
        controller.run(stop)
    finally:
        launcher.close()
        engine.dispose()


def launcher_of(settings: Settings) -> RayJobs | KubeRay:
    """The launcher that the settings ask for.

    Raises:
        InvalidPools: the pools file can't be used.
    """
    pools = pools_of(settings)
    if pools is None or settings.trainer_image is None:
        return RayJobs(
            settings.ray_dashboard, trainer_command=settings.trainer_command, token_path=settings.ray_token_path
        )
    house = House(
        namespace=settings.kube_namespace,
        image=settings.trainer_image,
        service_account=settings.ray_service_account,
        ray_version=settings.ray_version,
        trainer_command=settings.trainer_command,
        bucket=settings.s3_bucket,
        env_secret=settings.trainer_env_secret,
        s3_endpoint=settings.s3_endpoint,
        s3_region=settings.trainer_s3_region,
        grace_s=settings.stop_grace_s,
    )
    return KubeRay(pools, house, api=settings.kube_api)


class Controller:
    """Brings every job to where it should be, one step a tick.

    Args:
        clock: the time that is written down, and by which silence is measured.
        holder: this controller's name, unlike every other's; left out, one is made up.
        metrics: where it tells what it does; left out, nobody reads them.
    """

    def __init__(
        self,
        store: JobStore,
        objects: ObjectStore,
        launcher: Launcher,
        settings: Settings,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        holder: str | None = None,
        metrics: ControllerMetrics | None = None,
    ) -> None:
        self._metrics = metrics or ControllerMetrics()
        self._store = store
        self._objects = objects
        self._launcher = self._metrics.measured(launcher)
        self._settings = settings
        self._clock = clock
        self._policy = Policy(settings.heartbeat_timeout_s, settings.start_timeout_s, settings.stop_grace_s)
        holder = holder or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._leadership = Leadership(store, holder, settings.lease_s)
        self._epoch: int | None = None
        self._watch = Watch(gap_s=settings.lease_s)
        self._begun = False  # in this tick: attempts were written down, which the next one submits
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="look")

    @property
    def leads(self) -> bool:
        """Whether this controller acted when it last looked."""
        return self._epoch is not None

    def run(self, stop: threading.Event) -> None:
        """Tick until `stop` is set, then give the lease back."""
        try:
            while not stop.is_set():
                self._metrics.pulse.beat()
                pause = self._settings.tick_s
                try:
                    if not self.tick(stop):
                        pause = max(pause, self._settings.lease_s / 5)
                    elif self._begun:
                        pause = 0.0
                except StoreUnavailable as error:
                    logger.warning("nothing can be done now: %s", error)
                    pause = max(pause, 1.0)
                except Exception:
                    # The next tick does what this one left.
                    logger.exception("a tick failed")
                    self._metrics.failed("tick")
                    pause = max(pause, 1.0)
                stop.wait(pause)
        finally:
            self.close()

    def close(self) -> None:
        """Give the lease back, if it is held, so that another controller need not wait until it expires."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._metrics.leads(False)
        try:
            self._leadership.release()
        except Exception:
            logger.exception("the lease could not be given back; it expires by itself")

    def tick(self, stop: threading.Event | None = None) -> bool:
        """Take every live job one step further; False if another controller acts."""
        began = time.perf_counter()
        self._begun = False
        if not self._lead():
            return False
        try:
            self._awake()
            records = self._store.live_jobs()
            self._keep()
            self._metrics.live(records)
            observed = self._look(records)
            quiet: list[tuple[JobRecord, Change]] = []
            for record in records:
                if stop is not None and stop.is_set():
                    return True
                if record.job.id in observed:
                    self._keep()
                    quiet += self._handle(record, observed[record.job.id])
            self._write_quiet(quiet)
            self._keep()
            self._tidy(records)
            self._store.record_tick(self._leadership.lease)
            self._metrics.ticked(time.perf_counter() - began)
        except Fenced as error:
            logger.warning("another controller acts: %s", error)
            self._leadership.drop()
            self._metrics.leads(False)
            return False
        return True

    def _keep(self) -> None:
        self._leadership.keep()
        self._awake()

    def _awake(self) -> None:
        self._watch.awake(self._clock())
        self._metrics.pulse.beat()

    def _lead(self) -> bool:
        leads = self._leadership.take()
        epoch = self._leadership.lease.epoch if leads else None
        if epoch != self._epoch:
            logger.info("%s acts now", self._leadership.holder if leads else "another controller")
            self._watch.forget()  # what happened meanwhile was not seen here
            self._epoch = epoch
        self._metrics.leads(leads)
        return leads

    def _look(self, records: Sequence[JobRecord]) -> dict[str, Observed]:
        """What is to be seen, by job. A job that can't be looked at is left out, and the others go on."""
        look, began = Look(self._launcher, self._objects), self._clock()
        futures = {
            record.job.id: self._pool.submit(look.attempt, record, record.attempt)
            for record in records
            if record.job.state in ATTEMPTING and record.attempt is not None
        }
        observed = self._look_for_room(look, records)
        self._keep()
        pending = set(futures.values())
        while pending:
            left = wait(pending, timeout=self._settings.lease_s / 4).not_done
            self._leadership.keep()
            if len(left) < len(pending):  # one that never returns is no sign of life
                self._awake()
            pending = left
        answered = {}
        for job, future in futures.items():
            try:
                observed[job] = future.result()
            except Exception:
                logger.exception("job %s can't be looked at", job)
                self._metrics.failed("look")
            else:
                answered[job] = not observed[job].storage_error
        spans = self._watch.note(answered, self._clock())
        return {job: replace(seen, watched_since=spans.get(job), looked_at=began) for job, seen in observed.items()}

    def _look_for_room(self, look: Look, records: Sequence[JobRecord]) -> dict[str, Observed]:
        """Whether the jobs that wait may start."""
        waiting = [record.job for record in records if record.job.state in WAITING]
        if not waiting:
            return {}
        wanted = {source.job for job in waiting for source in job.spec.sources}
        states = self._store.states(wanted) if wanted else {}
        sources = {job.id: sources_of(job.spec, states) for job in waiting}
        answers, errors = self._answers(look, records, [job.id for job in waiting if sources[job.id] == Sources()])
        seen = Observed(storage_error=look.storage())
        return {
            job.id: replace(
                seen,
                fit=answers.get(job.id),
                launcher_error=errors.get(self._launcher.pool_of(job.spec.scaling.pool), ""),
                sources_pending=sources[job.id].pending,
                sources_broken=sources[job.id].broken,
            )
            for job in waiting
        }

    def _answers(
        self, look: Look, records: Sequence[JobRecord], ready: Collection[str]
    ) -> tuple[dict[str, FitAnswer], dict[str, str]]:
        """Whether each job that is ready may start, pool by pool; and by pool why the launcher does not say."""
        chosen = set(ready)
        live, waiting = defaultdict[str, list[tuple[datetime, Gang]]](list), defaultdict[str, list[Waiting]](list)
        for record in records:
            job, attempt = record.job, record.attempt
            pool = self._launcher.pool_of(job.spec.scaling.pool)
            if attempt is not None and attempt.attempt.state not in ATTEMPT_TERMINAL:
                live[pool].append((attempt.attempt.created_at, gang_of(job.spec)))
            elif job.state in WAITING:
                gangs = waiting[pool]
                if job.id in chosen and not job.cancel_requested:
                    gangs.append(Waiting(job.id, gang_of(job.spec)))
        answers, errors = dict[str, FitAnswer](), dict[str, str]()
        for pool, gangs in waiting.items():
            nodes, error = look.nodes(pool)
            if error:
                errors[pool] = error
            elif nodes is None:
                answers |= {item.job: FitAnswer("fits") for item in gangs}
            else:
                taken = [gang for _, gang in sorted(live[pool], key=lambda pair: pair[0])]
                answers |= admit(nodes, taken, gangs)
        return answers, errors

    def _tidy(self, records: Sequence[JobRecord]) -> None:
        """Remove what is left of attempts that have ended. What fails now is tried again in the next tick."""
        live = {
            record.attempt.attempt.external_name
            for record in records
            if record.attempt is not None and record.attempt.attempt.state not in ATTEMPT_TERMINAL
        }
        try:
            for name in self._launcher.leftovers(live):
                # An attempt is written down before it is submitted, so a holder of the lease knows of all that live.
                self._leadership.confirm()
                self._awake()
                self._launcher.stop(name)
        except LauncherUnavailable as error:
            logger.info("what is left of ended attempts can't be removed now: %s", error)

    def _handle(self, record: JobRecord, observed: Observed) -> list[tuple[JobRecord, Change]]:
        """Decide on one job and do it.

        Returns:
            What only notes a driver's sign of life, to be written with that of the others.
        """
        with self._alone(record):
            action = decide(record, observed, self._clock(), self._policy)
            if isinstance(action, Apply) and action.change.quiet and record.attempt is not None:
                return [(record, action.change)]
            if action is not None:
                self._write(record, self._carry_out(record, action))
                self._metrics.acted(action)
        return []

    def _write_quiet(self, quiet: Sequence[tuple[JobRecord, Change]]) -> None:
        """Write signs of life together; should one of them be impossible to write, each by itself."""
        try:
            written = self._store.apply_quiet(self._leadership.lease, quiet)
        except (Fenced, StoreUnavailable):
            raise
        except Exception:
            logger.exception("signs of life can't be written together")
            for record, change in quiet:
                self._keep()
                with self._alone(record):
                    self._write(record, change)
            return
        for record, change in quiet:
            if record.job.id in written:
                self._metrics.changed(record, change)
                self._metrics.acted(Apply(change))

    @contextmanager
    def _alone(self, record: JobRecord) -> Iterator[None]:
        """Whatever goes wrong within is this job's alone, but for a lost lease."""
        try:
            yield
        except Stale:
            logger.debug("job %s changed meanwhile; it is looked at again", record.job.id)
        except Fenced:
            raise
        except Exception:
            logger.exception("job %s could not be taken further", record.job.id)
            self._metrics.failed("job")

    def _carry_out(self, record: JobRecord, action: Action) -> Change:
        """Do what the action asks outside the database, and give what is to be written then."""
        try:
            match action:
                case Apply():
                    pass
                case Submit():
                    self._submit(record)
                case RequestStop():
                    self._leadership.confirm()
                    self._put(_prefix(record).control, Control(desired="stop", generation=record.job.generation))
                case ForceStop():
                    self._leadership.confirm()
                    self._launcher.stop(_newest(record).external_name)
                case _:
                    assert_never(action)
        except (LauncherUnavailable, PoolUnknown) as error:
            return condition(record, Reason.LAUNCHER_UNAVAILABLE, str(error))
        except StorageError as error:
            return condition(record, Reason.STORAGE_UNAVAILABLE, str(error))
        except LaunchRefused as error:
            return refused(record, str(error), self._clock())
        return action.change

    def _submit(self, record: JobRecord) -> None:
        """Write what the driver reads, then start it. Each of these is harmless when it was done before."""
        job, attempt, prefix = record.job, _newest(record), _prefix(record)
        self._leadership.confirm()
        self._put(prefix.spec, JobDocument(job=job.id, project=job.project, spec=job.spec, dataset=record.dataset))
        self._put(prefix.control, Control(desired="run", generation=job.generation))
        self._put(
            prefix.attempt(attempt.number).attempt,
            AttemptDocument(number=attempt.number, resume_from=attempt.resume_from),
        )
        # A controller that slept since it decided must not start what its successor may have given up.
        self._leadership.confirm()
        uri = self._objects.uri(prefix.key.rstrip("/"))
        cpus, gpus = driver_needs(job.spec)
        self._launcher.submit(
            LaunchRequest(
                attempt.external_name,
                uri,
                attempt.number,
                cpus,
                gpus,
                gang=None if cpus else gang_of(job.spec),
                pool=job.spec.scaling.pool,
                project=job.project,
            )
        )

    def _put(self, key: str, document: Document) -> None:
        self._objects.put(key, document.to_bytes(), "application/json")

    def _write(self, record: JobRecord, change: Change) -> None:
        if change != Change():
            self._store.apply(self._leadership.lease, record, change)
            self._begun |= change.new_attempt is not None
            self._metrics.changed(record, change)


def _prefix(record: JobRecord) -> JobPrefix:
    return JobPrefix.of(record.job.project, record.job.id)


def _newest(record: JobRecord) -> Attempt:
    """The attempt that an action is about."""
    if record.attempt is None:
        raise ValueError(f"job {record.job.id} has no attempt")
    return record.attempt.attempt
