"""Checkpoints: what is written is what is read, damage is noticed, and only what may go is removed."""

import io
import random
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from resforge import recipes
from resforge.metrics import EvalPoint
from resforge.s3 import ObjectStore
from resforge.storage import (
    INPUT,
    MANIFEST,
    TRAINER_STATE,
    WEIGHTS,
    CorruptCheckpoint,
    JobDocument,
    JobPrefix,
    Manifest,
    best,
    latest,
    list_checkpoints,
)
from tests.s3 import S3Server
from tests.trainer.gang import DIGITS
from trainer.average import WeightAverage
from trainer.checkpoints import (
    Moment,
    Snapshot,
    newest_verified,
    read_checkpoint,
    remove_old,
    rng_state,
    set_rng_state,
    write_checkpoint,
)
from trainer.initial import described
from trainer.models import build
from trainer.schedule import ScheduleState

pytestmark = pytest.mark.stack

JOB = JobDocument(job="job-a", project="p", spec=recipes.get("digits/resnet-20").spec, dataset=DIGITS)


def _snapshot(step: int) -> Snapshot:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    return Snapshot(
        weights={
            "conv1.weight": weight.to(memory_format=torch.channels_last),
            "bn1.num_batches_tracked": torch.tensor(step),
        },
        inputs={"mean": torch.rand(8, 8, 1, generator=generator), "std": torch.rand(1, generator=generator)},
        optimizer={"state": {0: {"momentum_buffer": weight * 2}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        rng=[rng_state(), rng_state()],
        step=step,
        schedule=ScheduleState(warm_at=step, best_error=0.25, bad_evaluations=1, cuts=2, hits=3, images=4),
    )


def _moment(attempt: int = 1, top1: float | None = None, *, final: bool = False) -> Moment:
    evaluation = None
    if top1 is not None:
        at = datetime.now(UTC)
        evaluation = EvalPoint(at=at, attempt=attempt, step=1, epoch=0, loss=1.0, top1=top1, top5=1.0, images=360)
    return Moment(attempt=attempt, epoch=0, offset=0, workers=2, final=final, evaluation=evaluation)


@pytest.fixture
def store(s3: S3Server) -> ObjectStore:
    return s3.store()


def test_what_is_read_is_what_was_written(store: ObjectStore) -> None:
    prefix = JobPrefix.of("p", "round-trip")
    written = _snapshot(7)
    checkpoint = write_checkpoint(store, prefix, JOB, written, _moment())
    read = read_checkpoint(store, checkpoint)
    assert read.step == 7
    for name, tensor in written.weights.items():
        assert torch.equal(read.weights[name], tensor)
    assert torch.equal(read.inputs["mean"], written.inputs["mean"])
    assert torch.equal(read.optimizer["state"][0]["momentum_buffer"], written.optimizer["state"][0]["momentum_buffer"])
    assert len(read.rng) == 2
    assert read.schedule == written.schedule
    assert read.averaged is None


def test_an_average_is_what_others_get(store: ObjectStore) -> None:
    """The weights of a checkpoint are those that were evaluated; training goes on with its own."""
    own, averaged = _snapshot(7), _snapshot(8).weights
    written = replace(own, averaged=averaged)
    checkpoint = write_checkpoint(store, JobPrefix.of("p", "averaged"), JOB, written, _moment())
    read = read_checkpoint(store, checkpoint)
    shown = load(store.get(checkpoint.key + WEIGHTS))
    assert read.averaged is not None
    for name, tensor in own.weights.items():
        assert torch.equal(read.weights[name], tensor)
        assert torch.equal(read.averaged[name], averaged[name])
        assert torch.equal(shown[name], averaged[name])


def test_a_checkpoint_from_before_schedules_had_a_state_is_read(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(state: dict[str, Any], buffer: io.BytesIO) -> None:
        whole({name: state[name] for name in ("optimizer", "rng", "step")}, buffer)

    whole = torch.save
    monkeypatch.setattr("trainer.checkpoints.torch.save", save)
    checkpoint = write_checkpoint(store, JobPrefix.of("p", "older"), JOB, _snapshot(7), _moment())
    read = read_checkpoint(store, checkpoint)
    assert (read.step, read.schedule) == (7, ScheduleState())


@pytest.mark.parametrize("averaged", [False, True])
def test_a_copy_is_written_as_what_it_was_taken_of_whatever_becomes_of_that(store: ObjectStore, averaged: bool) -> None:
    """To the last byte, with momentum in channels_last: a copy that lost its strides would be other bytes."""
    network = build(described(JOB)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    average = WeightAverage(network, 0.9) if averaged else None

    def step() -> None:
        optimizer.zero_grad()
        network(torch.randn(4, 1, 8, 8).to(memory_format=torch.channels_last)).square().mean().backward()
        optimizer.step()
        if average:
            average.update(1)

    step()
    live = Snapshot(
        weights=network.state_dict(),
        inputs={"mean": torch.rand(8, 8, 1), "std": torch.rand(1)},
        optimizer=optimizer.state_dict(),
        rng=[rng_state()],
        step=1,
        averaged=average.state_dict() if average else None,
    )
    copy = live.copied()
    at_once = write_checkpoint(store, JobPrefix.of("p", f"live-{averaged}"), JOB, live, _moment())
    step()
    later = write_checkpoint(store, JobPrefix.of("p", f"copy-{averaged}"), JOB, copy, _moment())
    assert later.manifest.parts == at_once.manifest.parts
    behind = write_checkpoint(store, JobPrefix.of("p", f"behind-{averaged}"), JOB, live, _moment())
    assert behind.manifest.parts != at_once.manifest.parts  # what is live has changed


def test_random_states_are_taken_up_again() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    before = rng_state()
    first = draw()
    draw()
    set_rng_state(before)
    assert draw() == first


@pytest.mark.parametrize("part", [WEIGHTS, INPUT, TRAINER_STATE, MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_of_any_part_is_noticed_and_the_one_before_is_used(store: ObjectStore, part: str, damage: str) -> None:
    prefix = JobPrefix.of("p", f"damage-{part.replace('.', '-')}-{damage}")
    good = write_checkpoint(store, prefix, JOB, _snapshot(1), _moment())
    bad = write_checkpoint(store, prefix, JOB, _snapshot(2), _moment())
    data = store.get(bad.key + part)
    at = random.randrange(len(data))
    match damage:
        case "flip":
            store.put(bad.key + part, data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :])
        case "cut":
            store.put(bad.key + part, data[:at])
        case "remove":
            store.delete(bad.key + part)
    found, damaged = newest_verified(store, prefix, [1])
    assert found is not None
    assert found.key == good.key
    assert read_checkpoint(store, found).step == 1
    if part != MANIFEST:  # without a manifest that can be read, there is no checkpoint to speak of
        assert [item.key for item, _ in damaged] == [bad.key]
        assert bad.key + part in damaged[0][1]
        with pytest.raises(CorruptCheckpoint, match=part.replace(".", r"\.")):
            read_checkpoint(store, bad)


def test_only_the_attempts_named_are_looked_at(store: ObjectStore) -> None:
    prefix = JobPrefix.of("p", "named")
    for attempt, step in ((1, 5), (2, 9), (3, 7)):
        write_checkpoint(store, prefix, JOB, _snapshot(step), _moment(attempt))
    found, _ = newest_verified(store, prefix, [1, 3])
    assert found is not None
    assert found.manifest.step == 7


@settings(max_examples=15, deadline=None)
@given(
    accuracies=st.lists(st.one_of(st.none(), st.sampled_from([0.1, 0.5, 0.9])), min_size=1, max_size=6),
    keep=st.integers(1, 4),
)
def test_the_last_and_the_best_are_kept(s3: S3Server, accuracies: list[float | None], keep: int) -> None:
    store, prefix = s3.store(), JobPrefix.of("p", f"kept-{random.randrange(2**48)}")
    for step, accuracy in enumerate(accuracies, start=1):
        write_checkpoint(store, prefix, JOB, _snapshot(step), _moment(1 + step % 2, accuracy))
    before = list_checkpoints(store, prefix, [1, 2])
    removed = remove_old(store, prefix, [1, 2], keep, before[-1])
    after = list_checkpoints(store, prefix, [1, 2])

    assert latest(after) == latest(before)
    assert best(after) == best(before)
    steps = [item.manifest.step for item in after]
    assert steps[-keep:] == [item.manifest.step for item in before][-keep:]
    assert sorted(steps + removed) == list(range(1, len(accuracies) + 1))
    assert len(after) <= keep + 1
    # What has gone has gone whole.
    keys = {item.key for item in store.list_objects(prefix.key)}
    assert keys == {item.key + name for item in after for name in (WEIGHTS, INPUT, TRAINER_STATE, MANIFEST)}
    store.delete_prefix(prefix.key)


def test_the_best_of_equals_is_the_earliest(store: ObjectStore) -> None:
    prefix = JobPrefix.of("p", "equals")
    for step in (1, 2, 3):
        write_checkpoint(store, prefix, JOB, _snapshot(step), _moment(1, 0.9 if step > 1 else 0.8))
    found = best(list_checkpoints(store, prefix, [1]))
    assert found is not None
    assert found.manifest.step == 2


def test_a_manifest_guards_itself(store: ObjectStore) -> None:
    prefix = JobPrefix.of("p", "sealed")
    checkpoint = write_checkpoint(store, prefix, JOB, _snapshot(3), _moment(1, 0.5))
    data = store.get(checkpoint.key + MANIFEST)
    assert Manifest.parse(data) == checkpoint.manifest
    with pytest.raises(CorruptCheckpoint, match="bytes have changed"):
        Manifest.parse(data.replace(b'"top1": 0.5', b'"top1": 0.6'))
    for at in range(len(data)):  # every single bit, of names of fields as well
        for bit in range(8):
            with pytest.raises(CorruptCheckpoint):
                Manifest.parse(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])
