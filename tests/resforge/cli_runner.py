"""Running the command line inside the test's own process, which saves the start of an interpreter for each call."""

import json
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from resforge.cli import main

PROGRAM = [sys.executable, "-c", "from resforge.cli import main; main()"]


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


class Cli:
    """Calls `resforge ...` through its entry point."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *words: object) -> Done:
        self._capsys.readouterr()
        self._monkeypatch.setattr(sys, "argv", ["resforge", *map(str, words)])
        code: object = 0
        try:
            main()
        except SystemExit as left:
            code = left.code
        out, err = self._capsys.readouterr()
        return Done(int(str(code or 0)), out, err)
