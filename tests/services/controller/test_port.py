"""The controller's port, over HTTP."""

import socket
import threading
import time
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from services.controller.loop import Controller
from services.controller.port import HANGS_AFTER_S, MetricsPortTaken, Pulse, serve
from services.launchers.base import Observation
from services.settings import Settings
from tests.s3 import free_port
from tests.services.controller.stage import Stage
from tests.services.local.waiting import until


def settings(**changes: Any) -> Settings:
    return Settings(database_url="sqlite:///unused", s3_bucket="unused", **changes)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            MetricsPortTaken, match=f"127.0.0.1:{port} can't be listened on: .*; name a free port, or 0"
        ):
            serve(CollectorRegistry(), Pulse(), settings(metrics_port=port))


def test_a_loop_that_hangs_is_told_from_one_that_works() -> None:
    now, port = [100.0], free_port()
    pulse = Pulse(lambda: now[0])
    serve(CollectorRegistry(), pulse, settings(metrics_port=port))

    def livez() -> tuple[int, str]:
        answer = httpx.get(f"http://127.0.0.1:{port}/livez", trust_env=False)
        return answer.status_code, answer.text

    assert livez() == (200, "the loop last did something 0.0 s ago\n")  # before its first tick too
    now[0] += HANGS_AFTER_S
    assert livez() == (503, "the loop last did something 120.0 s ago\n")
    pulse.beat()
    assert livez()[0] == 200
    assert httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).status_code == 200


@pytest.mark.stack
def test_a_look_that_never_returns_gives_none(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = stage.controller()
    job = stage.submit()
    stage.running(controller, job)
    answers, beats, kept = threading.Event(), list[float](), threading.Event()
    observe, confirm = stage.launcher.observe, controller._leadership.keep

    def hang(name: str) -> Observation:
        answers.wait(60)
        return observe(name)

    def keep() -> None:
        confirm()
        if asked:
            kept.set()

    asked = list[bool]()
    monkeypatch.setattr(stage.launcher, "observe", hang)
    monkeypatch.setattr(controller._leadership, "keep", keep)
    ticking = threading.Thread(target=controller.tick)
    ticking.start()
    until(lambda: answers._cond._waiters, what="the look")  # type: ignore[attr-defined]
    asked.append(True)
    monkeypatch.setattr(Pulse, "beat", lambda _: beats.append(time.monotonic()))
    assert kept.wait(30)  # the lease is held meanwhile
    assert beats == []
    answers.set()
    ticking.join(30)
    assert beats != []


@pytest.mark.stack
def test_the_loop_gives_signs_of_life(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = list[None]()
    monkeypatch.setattr(Pulse, "beat", lambda _: beats.append(None))
    controller: Controller = stage.controller()
    stage.submit()
    assert controller.tick()
    assert beats
