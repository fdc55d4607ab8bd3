"""What holds for the whole run: with RESFORGE_FORBID_SKIPS=1 a skipped test fails it, but for those that check against
schemas of other projects where nobody has given these (RESFORGE_CRDS)."""

import os

import pytest

_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # An expected failure is reported as skipped too, but it has run.
    if report.skipped and not hasattr(report, "wasxfail") and "RESFORGE_CRDS" not in str(report.longrepr):
        _skipped.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped and "RESFORGE_CRDS" not in str(report.longrepr):  # a whole module
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skipped and os.environ.get("RESFORGE_FORBID_SKIPS") == "1" and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped and os.environ.get("RESFORGE_FORBID_SKIPS") == "1":
        terminalreporter.section("skipped tests are forbidden (RESFORGE_FORBID_SKIPS=1)")
        for nodeid in _skipped:
            terminalreporter.line(f"SKIPPED {nodeid}", red=True)
