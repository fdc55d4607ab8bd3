"""Jobs that are no training: an evaluation or a reading of checkpoints, done by one worker process.

They need neither Ray Train nor Lightning, so they start in seconds. A landscape alone may be spread over Ray tasks.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch

from resforge.metrics import EvalPoint
from resforge.reports import Report, ReportedCheckpoint
from resforge.s3 import ObjectStore
from resforge.spec import AnalyseSpec, EvaluateSpec
from resforge.storage import REPORT, AttemptPrefix, JobDocument, JobPrefix, Part, Result
from trainer.data.image_set import ImageSet
from trainer.data.splits import open_split
from trainer.hardware import device_name, versions
from trainer.pace import Pace, conclude, ended, given_up
from trainer.settings import TrainerSettings
from trainer.sources import Source, open_source
from trainer.streams import Shipper
from trainer.threads import use_cores

logger = logging.getLogger(__name__)

EVALUATION = "He et al. 2015, section 3.4"
EVALUATED = {
    "top1_error": "fraction of the images whose most probable class is not theirs, 0 to 1",
    "top5_error": "fraction of the images whose class is none of the five most probable, 0 to 1",
    "loss": "mean cross-entropy of the averaged probabilities, in nats",
    "members": "the same for each checkpoint by itself",
    "class_errors": "top-1 error by class, 0 to 1",
    "confusion": "images by class (row) and by the class that they were taken for (column)",
}


@dataclass(frozen=True)
class _Found:
    """What a task found, before it is published."""

    name: str
    title: str
    source: str
    values: dict[str, Any]
    units: dict[str, str]
    pictures: dict[str, bytes]
    evaluation: EvalPoint | None = None


def perform(
    store: ObjectStore, prefix: JobPrefix, job: JobDocument, attempt: int, settings: TrainerSettings, shipper: Shipper
) -> Result | None:
    """Do the job and publish its report; say how it ended.

    Returns:
        None where another attempt has taken over meanwhile.

    Raises:
        StorageError: object storage does not answer; another attempt may do better.
    """
    if given_up(store, prefix, attempt):
        return None
    return conclude(lambda: _perform(store, prefix, job, attempt, settings, shipper))


def _perform(
    store: ObjectStore, prefix: JobPrefix, job: JobDocument, attempt: int, settings: TrainerSettings, shipper: Shipper
) -> Result:
    pace = Pace(store, prefix, attempt, shipper)
    started = time.monotonic()
    pace(0, 1)
    with _memory_named():
        found, about = _work(store, job, attempt, settings, pace)
    keys = prefix.attempt(attempt)
    report = _publish(store, keys, job, attempt, found, about, seconds=time.monotonic() - started)
    shipper.event(
        "ReportPublished",
        f"{report.title}: {len(report.pictures)} pictures, {report.seconds:.1f} s",
        pictures=[part.name for part in report.pictures],
    )
    return ended("succeeded", evaluation=found.evaluation)


@contextmanager
def _memory_named() -> Iterator[None]:
    from trainer.errors import OutOfMemory

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"the memory does not suffice; a smaller batch may: {error}") from error


@dataclass(frozen=True)
class _About:
    """What the images and checkpoints were."""

    sources: Sequence[Source]
    images: ImageSet
    dataset: str
    split: str
    device: torch.device


def _work(
    store: ObjectStore, job: JobDocument, attempt: int, settings: TrainerSettings, pace: Pace
) -> tuple[_Found, _About]:
    spec = job.spec
    assert isinstance(spec, EvaluateSpec | AnalyseSpec)
    gpu = spec.scaling.gpus_per_worker > 0 and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    use_cores(spec.scaling.cpus_per_worker)
    sources = [open_source(store, job.project, reference) for reference in spec.sources]

    def images_of(split: str, limit: int | None) -> ImageSet:
        shown = sources[0].job.model_copy(update={"dataset": job.dataset})
        return open_split(
            shown,
            split,
            store_factory=lambda name: ObjectStore(name, endpoint=store.endpoint),
            cache_dir=settings.scratch / "data",
            limit=limit,
        )

    images = images_of(spec.data.split, spec.data.limit)
    logger.info("%s: %d images of %s (%s) on %s", spec.subject, len(images), job.dataset.name, spec.data.split, device)
    about = _About(sources, images, job.dataset.name, spec.data.split, device)
    if isinstance(spec, EvaluateSpec):
        return _evaluate(spec, about, attempt, images_of, pace), about
    return _analyse(spec, about, store, pace), about


def _evaluate(
    spec: EvaluateSpec, about: _About, attempt: int, images_of: Callable[[str, int | None], ImageSet], pace: Pace
) -> _Found:
    from trainer.protocols import evaluate_sources

    wanted = spec.protocol.recompute_batch_norm
    evaluated = evaluate_sources(
        about.sources,
        about.images,
        spec.protocol,
        device=about.device,
        precision=spec.precision,
        batch=spec.batch,
        train_images=images_of("train", wanted) if wanted else None,
        progress=pace,
    )
    first, values = about.sources[0].manifest, evaluated.values()
    point = evaluated.totals.point(attempt=attempt, step=first.step, epoch=first.last_epoch, split=about.split)
    several = len(about.sources) > 1
    what = f"an ensemble of {len(about.sources)}" if several else f"{first.model.name} at step {first.step}"
    return _Found(
        name=spec.protocol.views,
        title=f"{what} on {about.dataset} ({about.split}), {spec.protocol.views}",
        source=EVALUATION,
        values=values,
        units={name: unit for name, unit in EVALUATED.items() if name in values},
        pictures=evaluated.pictures(),
        evaluation=point,
    )


def _analyse(spec: AnalyseSpec, about: _About, store: ObjectStore, pace: Pace) -> _Found:
    from trainer.analysis import SOURCES, read
    from trainer.analysis.subject import Subject, here
    from trainer.initial import initial_network

    source = about.sources[0]
    subject = Subject(
        network=source.network.to(about.device),
        model=source.manifest.model,
        manifest=source.manifest,
        images=about.images,
        normalise=source.normalisation.to(about.device).normalise,
        initial=partial(initial_network, source.job, store),
        device=about.device,
        seed=spec.seed,
    )
    if spec.scaling.workers > 1:
        from trainer.ray_tasks import over_ray

        with over_ray(spec.scaling) as spread:
            outcome = read(spec.reading, subject, progress=pace, spread=spread)
    else:
        outcome = read(spec.reading, subject, progress=pace, spread=here)
    return _Found(
        name=spec.reading.name,
        title=f"{spec.reading.name} of {subject.title}",
        source=SOURCES[spec.reading.name],
        values=outcome.values,
        units=outcome.units,
        pictures=outcome.pictures,
    )


def _publish(
    store: ObjectStore,
    keys: AttemptPrefix,
    job: JobDocument,
    attempt: int,
    found: _Found,
    about: _About,
    *,
    seconds: float,
) -> Report:
    """Write the pictures, and then the report that names them."""
    parts = []
    for name, data in found.pictures.items():
        store.put(keys.report + name, data, "image/png")
        parts.append(Part(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest()))
    report = Report(
        kind=job.spec.kind,
        name=found.name,
        title=found.title,
        job=job.job,
        attempt=attempt,
        checkpoints=tuple(
            ReportedCheckpoint(
                job=source.manifest.job,
                attempt=source.manifest.attempt,
                step=source.manifest.step,
                model=source.manifest.model.name,
                dataset=source.manifest.dataset,
            )
            for source in about.sources
        ),
        dataset=about.dataset,
        split=about.split,
        images=len(about.images),
        source=found.source,
        units=found.units,
        values=found.values,
        pictures=tuple(parts),
        seconds=seconds,
        device=device_name(about.device),
        versions=versions(),
        made_at=datetime.now(UTC),
    )
    store.put(keys.report + REPORT, report.to_bytes(), "application/json")
    return report
