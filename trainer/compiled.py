"""What torch has compiled, kept in object storage for nodes that have not compiled it.

A node keeps it too (`trainer.step.keep_compiled`), where its scratch folder outlives the pod. What is kept is torch's
own artifacts, which are run when they are loaded: so they lie in the project's part of the service's bucket, where
nobody writes but the trainers.
"""

import hashlib
import json
import logging

import torch
from torch.compiler._cache import CacheInfo

from resforge.s3 import ObjectStore, StorageError
from resforge.spec import TrainSpec
from resforge.storage import JobDocument, compiled_folder
from trainer.hardware import device_name

logger = logging.getLogger(__name__)

MOST_KEPT = 64  # steps of a project


class Artifacts:
    """The artifacts of one step: a network, its batch and how it is computed, on one kind of device.

    Whether they fit is for torch to find out, which looks each up by what is compiled; the key is there for finding
    likely ones. Neither reading nor writing ends a run: without, it compiles.
    """

    def __init__(self, store: ObjectStore, job: JobDocument, device: torch.device, *, workers: int) -> None:
        assert isinstance(job.spec, TrainSpec)
        spec = job.spec
        described = [
            torch.__version__, device_name(device), spec.model.model_dump(mode="json"),
            spec.data.model_dump(mode="json", include={"downscale", "mean", "augment"}),
            job.dataset.model_dump(mode="json", include={"channels", "classes", "image_size"}),
            spec.regularisation.model_dump(mode="json"), spec.training.global_batch // workers, workers == 1,
            spec.training.precision, spec.training.compile, spec.training.progressive_from,
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        self._store, self._folder = store, compiled_folder(job.project)
        self.key = f"{self._folder}{digest[:32]}"
        self._known: set[str] = set()  # the artifacts that were loaded

    def load(self) -> None:
        """Have what was kept at hand, before anything is compiled."""
        where = self._store.uri(self.key)
        try:
            kept = self._store.find(self.key)
            if kept is None:
                return
            loaded = torch.compiler.load_cache_artifacts(kept)
        except (StorageError, OSError) as error:
            logger.warning("what was compiled before can't be taken up: %s", error)
            return
        if loaded is None:  # torch says why
            logger.warning("what was compiled before, %s can't be taken up", where)
            return
        self._known = _names(loaded)
        logger.info("taking up what was compiled before, %s", where)

    def save(self) -> None:
        """Keep what was compiled, unless all of it was loaded; one rank calls it."""
        made = torch.compiler.save_cache_artifacts()
        if made is None or _names(made[1]) <= self._known:
            return
        try:
            self._store.put(self.key, made[0])
            logger.info("kept what was compiled, %.1f MB at %s", len(made[0]) / 1e6, self._store.uri(self.key))
        except StorageError as error:
            logger.warning("what was compiled can't be kept for others: %s", error)
            return
        try:
            self._remove_oldest()
        except StorageError as error:
            logger.warning("what was compiled long ago can't be removed: %s", error)

    def _remove_oldest(self) -> None:
        """Let a project keep no more than `MOST_KEPT`: this one, and those that were written last before it."""
        others = [item for item in self._store.list_objects(self._folder) if item.key != self.key]
        others.sort(key=lambda item: item.modified, reverse=True)
        for item in others[MOST_KEPT - 1 :]:
            self._store.delete(item.key)


def _names(told: CacheInfo) -> set[str]:
    return {f"{kind} {name}" for kind, names in told.artifacts.items() for name in names}
