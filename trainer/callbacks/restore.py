"""Takes up a run's state at its start, after DDP was warmed up, so that a resumed run equals one that never stopped."""

from dataclasses import replace

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback

from trainer.checkpoints import Snapshot, rng_state, set_rng_state
from trainer.classifier import Classifier
from trainer.compiled import Artifacts
from trainer.optim import restore
from trainer.run import Run


class Restore(Callback):
    """Warms DDP up, then restores weights, their average, buffers, momentum and random states.

    DDP rebuilds its buckets after its first iteration, which changes the order in which gradients are added. With two
    workers a+b = b+a hides that; with three or more, a resumed run would add in another order than an uninterrupted
    one for its first step. Two throwaway passes at the start of *every* attempt, fresh or resumed, put both in the
    same place. Where the step is compiled, they compile it.
    """

    def __init__(self, run: Run, snapshot: Snapshot | None, artifacts: Artifacts | None = None) -> None:
        self.run = run
        self.snapshot = snapshot
        self.artifacts = artifacts

    def on_train_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        fresh = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
        rng = rng_state()
        local = self.run.job.spec.training.global_batch // self.run.workers
        data = self.run.job.dataset
        side = self.run.job.spec.data.image_size(data.image_size)
        shape = (local, side, side, data.channels)
        images = torch.zeros(shape, dtype=torch.uint8, device=self.run.device)
        labels = torch.arange(local, device=self.run.device) % data.classes
        batch = [images, labels]  # of what the real ones are made, lest they be compiled anew
        if self.run.job.spec.data.augment.colour:
            batch.append(torch.zeros(local, data.channels, device=self.run.device))
        for _ in range(2):
            loss = trainer.strategy.training_step(tuple(batch), 0)
            loss.backward()
            module.zero_grad(set_to_none=True)
        if self.artifacts and self.run.rank == 0:
            self.artifacts.save()
        module.network.load_state_dict(self.snapshot.weights if self.snapshot else fresh)
        if module.average:
            averaged = self.snapshot.averaged if self.snapshot else None
            module.average.restart(averaged or module.network.state_dict())
        module.sums.zero_()
        module.window.zero_()
        set_rng_state(rng)
        if self.snapshot:
            restore(trainer.optimizers[0], self.snapshot.optimizer)
            schedule = self.snapshot.schedule
            module.schedule = replace(schedule, hits=0, images=0)
            if self.run.rank == 0:  # the window is summed over the ranks, of which there may be others now
                module.window += module.window.new_tensor([schedule.hits, schedule.images])
            if self.run.rank < len(self.snapshot.rng):
                set_rng_state(self.snapshot.rng[self.run.rank])
        self.snapshot = None  # free the memory
