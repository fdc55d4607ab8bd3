"""What holds for the whole run: with RESFORGE_FORBID_SKIPS=1 a skipped test fails it, but for those that check against
schemas of other projects where these are missing: they are files of no public package.

With pytest-xdist several processes share the tests, by modules, whose servers are their own. Where modules have one
stack or one Ray, they stay together.
"""

import os
from typing import Any

import pytest

from tests.system_packages import CRDS

ONE_STACK = ("tests/e2e/", "tests/services/launchers/")

_skipped: list[str] = []


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return next((folder for folder in ONE_STACK if module.startswith(folder)), module)

    return Together(config, log)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # An expected failure is reported as skipped too, but it has run.
    if report.skipped and not hasattr(report, "wasxfail") and CRDS.reason not in str(report.longrepr):
        _skipped.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped and CRDS.reason not in str(report.longrepr):  # a whole module
        _skipped.append(report.nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Modules are collected, and so skipped, in xdist's workers alone."""
    _skipped.extend(set(getattr(node, "workeroutput", {}).get("skipped", [])) - set(_skipped))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["skipped"] = _skipped
        return
    if _skipped and os.environ.get("RESFORGE_FORBID_SKIPS") == "1" and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped and os.environ.get("RESFORGE_FORBID_SKIPS") == "1":
        terminalreporter.section("skipped tests are forbidden (RESFORGE_FORBID_SKIPS=1)")
        for nodeid in _skipped:
            terminalreporter.line(f"SKIPPED {nodeid}", red=True)
