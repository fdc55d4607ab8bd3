"""The compiled step and DDP's options: the same training as the plain one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks import step as benchmark
from resforge.metrics import POINT
from resforge.spec import TrainingSpec, TrainSpec
from resforge.storage import JobPrefix, Stream, latest, list_checkpoints, read_stream
from tests.s3 import S3Server
from tests.trainer.gang import DIGITS, run_gang, write_job
from tests.trainer.test_resume import small_spec
from trainer import step, worker
from trainer.checkpoints import Snapshot, read_checkpoint
from trainer.data.sets import input_normalisation, open_dataset
from trainer.errors import CannotCompile
from trainer.models import build
from trainer.optim import build_optimizer, restore
from trainer.step import compile_mode, compiled, ddp_options, forward_pass, why_not_compiled

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def training(**changes: object) -> TrainingSpec:
    return TrainingSpec.model_validate({"global_batch": 32, "steps": 10, **changes})


@pytest.mark.parametrize(
    ("asked", "device", "mode"),
    [
        ("auto", CPU, None), ("auto", GPU, "default"), ("off", GPU, None), ("default", CPU, "default"),
        ("reduce-overhead", GPU, "reduce-overhead"), ("max-autotune", GPU, "max-autotune"),
    ],
)  # fmt: skip
def test_auto_compiles_on_a_gpu_alone(asked: str, device: torch.device, mode: str | None) -> None:
    assert compile_mode(training(compile=asked), device) == mode


def test_ddp_has_the_options_of_the_step() -> None:
    plain = {"gradient_as_bucket_view": True, step.SENDS_BUFFERS: False, "static_graph": True}
    assert ddp_options(training(), device=GPU, compiles=False, workers=2) == plain
    assert ddp_options(training(), device=GPU, compiles=True, workers=2) == {**plain, "static_graph": False}
    half = training(gradient_compression="bf16")
    assert ddp_options(half, device=GPU, compiles=False, workers=1) == plain
    compressed = ddp_options(half, device=GPU, compiles=False, workers=2)
    assert compressed.pop("ddp_comm_hook").__name__ == "bf16_compress_hook"
    assert compressed == plain


def test_a_host_that_cannot_compile_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(*given: object, **named: object) -> None:
        raise RuntimeError("\n  no C++ compiler was found\n\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(torch, "compile", compile)
    assert why_not_compiled("default", CPU) == "no C++ compiler was found"


def test_a_host_that_can_compile_is_found_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the C++ compiler, which not every host of these tests has: the small block itself compiles."""
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda block, dynamic, mode: whole(block, dynamic=dynamic, backend=mode))
    assert why_not_compiled("aot_eager", CPU) is None


def test_a_gang_goes_on_uncompiled_where_one_host_cannot_and_none_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "why_not_compiled", lambda *_: None)
    monkeypatch.setattr(worker, "_over_ranks", lambda place, own: [own, "no g++"])
    monkeypatch.setattr(worker, "Artifacts", lambda *_, workers: SimpleNamespace(load=lambda: None))
    events: list[str] = []
    place = SimpleNamespace(device=GPU, workers=2)

    def forward(images: torch.Tensor) -> torch.Tensor:
        return images

    def run(asked: str) -> Any:
        job = SimpleNamespace(spec=small_spec(2, training={"global_batch": 32, "steps": 10, "compile": asked}))
        return SimpleNamespace(job=job, store=None, event=lambda type, message: events.append(message))

    assert worker._forward(run("auto"), place, forward, None) == (forward, None)  # type: ignore[arg-type]
    assert events == ["the step runs uncompiled, since it can't be compiled here: rank 1: no g++"]
    with pytest.raises(CannotCompile, match=r"training.compile asks for max-autotune.*rank 1: no g\+\+.*auto and off"):
        worker._forward(run("max-autotune"), place, forward, None)  # type: ignore[arg-type]


def test_a_compiled_pass_keeps_names_and_leaves_the_network_as_it_is() -> None:
    """Of stored and of normalised images of three sizes: each is compiled once, and evaluations compile nothing."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    names, graphs = list(network.state_dict()), []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    plain = forward_pass(network, lambda images: (images / 255).permute(0, 3, 1, 2))
    fast = torch.compile(plain, dynamic=False, backend=counting)
    assert compiled(plain, "default", sizes=3, backend="eager") is not plain
    for _ in range(2):
        for side in (8, 12, 16):
            images = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)
            floats = (images / 255).permute(0, 3, 1, 2)
            assert torch.equal(fast(images), plain(images))
            assert torch.equal(fast(floats), fast(images))
    assert len(graphs) == 6
    network.eval()
    for batch in range(1, 5):
        network(torch.randn(batch, 3, 9, 9))
    assert len(graphs) == 6
    assert list(network.state_dict()) == names


def test_a_restored_optimiser_steps_in_this_devices_way() -> None:
    spec, network = small_spec(1).optim, nn.Linear(2, 2)
    there, here = build_optimizer(spec, network), build_optimizer(spec, network)
    there.param_groups[0]["fused"] = True
    here.param_groups[0]["lr"] = 7.0
    restore(here, there.state_dict())
    assert not here.param_groups[0]["fused"]
    assert here.param_groups[0]["lr"] == spec.lr


def test_the_fast_step_trains_as_the_plain_one() -> None:
    """200 steps on real digits, compiled, in channels_last memory and with the fused SGD, against none of the three.

    In doubles, where both differ by rounding alone, and losses and weights agree to 1e-6: in floats a difference of
    1e-7 in the first step is one of 0.1 by the last, whatever it comes from.
    """
    images = open_dataset(DIGITS, "train")
    pixels, labels = torch.from_numpy(images.test_images(range(len(images)))), torch.from_numpy(images.labels)
    normalisation, spec = input_normalisation(images, "pixel"), small_spec(1)
    described = spec.model.network(channels=1, classes=10, image_size=8)
    torch._dynamo.reset()

    def trained(fast: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        network = build(described).double()
        forward = forward_pass(network, lambda images: normalisation.normalise(images).double())
        optimizer = build_optimizer(spec.optim, network)
        if fast:
            network.to(memory_format=torch.channels_last)
            forward = compiled(forward, "default", backend="aot_eager")
            optimizer.param_groups[0]["fused"] = True
        losses = []
        for _ in range(200):
            chosen = torch.randint(len(labels), (32,))
            loss = functional.cross_entropy(forward(pixels[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, network.state_dict()

    (plain, before), (fast, after) = trained(False), trained(True)
    assert sum(plain[-20:]) / 20 < 0.1, "it has learned"
    torch.testing.assert_close(torch.tensor(fast), torch.tensor(plain), rtol=0, atol=1e-6)
    for name, weights in before.items():
        torch.testing.assert_close(after[name], weights, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("depth", [50, 152])
def test_what_a_step_moves_is_near_what_others_reckoned(depth: int) -> None:
    network = benchmark.Setting(CPU, depth, 224, 256).network()
    moved = benchmark.traffic(network, width=2, batch=256)
    unfused, fused, within = benchmark.PUBLISHED[depth]
    assert moved.unfused / 1e6 == pytest.approx(unfused, rel=0.01)
    assert moved.fused / 1e6 == pytest.approx(fused, rel=0.05)
    assert moved.into_convolutions / 1e6 == pytest.approx(within, rel=0.2)


# --- Gangs


def last(s3: S3Server, prefix: JobPrefix) -> Snapshot:
    checkpoint = latest(list_checkpoints(s3.store(), prefix, [1, 2]))
    assert checkpoint is not None
    assert checkpoint.manifest.final
    return read_checkpoint(s3.store(), checkpoint)


def told(s3: S3Server, prefix: JobPrefix) -> list[tuple[object, ...]]:
    lines = read_stream(s3.store(), prefix, Stream.METRICS, [1])
    points = [POINT.validate_json(line) for _, line in lines]
    return sorted((point.kind, point.step, point.loss, point.top1) for point in points)


def train(s3: S3Server, cache: Path, spec: TrainSpec, job: str, **options: object) -> JobPrefix:
    prefix = write_job(s3.store(), spec, job)
    result = run_gang(s3, prefix, 1, spec.scaling.workers, cache=cache, **options)  # type: ignore[arg-type]
    assert result is not None
    assert result.outcome == "succeeded", result.message
    return prefix


def short(**changes: object) -> TrainSpec:
    """Of three workers, so that the order counts in which gradients are added; evaluated once on the way."""
    return small_spec(3, training={"global_batch": 30, "steps": 20, "log_every_steps": 1, "seed": 7, **changes})


@pytest.mark.stack
def test_ddps_options_change_no_bit_and_compiling_little(s3: S3Server, tmp_path: Path) -> None:
    """Against DDP as it comes, which sends out batch norm's statistics before each step: weights, statistics, momentum
    and all that is reported are the same. Compiled, where DDP has its graph cut, they are so to rounding."""
    plain = train(s3, tmp_path, short(), "step-plain", plain_ddp=True)
    ours = train(s3, tmp_path, short(), "step-ours")
    before, after = last(s3, plain), last(s3, ours)
    assert before.weights.keys() == after.weights.keys()
    assert all(torch.equal(before.weights[name], after.weights[name]) for name in before.weights)
    momenta = [snapshot.optimizer["state"] for snapshot in (before, after)]
    assert all(torch.equal(momenta[0][i]["momentum_buffer"], momenta[1][i]["momentum_buffer"]) for i in momenta[0])
    assert told(s3, plain) == told(s3, ours)

    fast = last(s3, train(s3, tmp_path, short(compile="default"), "step-compiled", backend="aot_eager"))
    assert fast.weights.keys() == after.weights.keys()
    for name, weights in after.weights.items():
        torch.testing.assert_close(fast.weights[name], weights, rtol=1e-3, atol=1e-3)
