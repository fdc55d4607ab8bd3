"""The rules: that they ask for what is there, lead to their runbooks, and fire when they should."""

import re
import subprocess

import pytest
import yaml

from resforge import metrics
from resforge.jobs import USER_ERRORS
from tests.deploy.promql import ROOT, anchors, compared, names, rules
from tests.system_packages import PROMTOOL

PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def test_every_rule_asks_for_metrics_that_are_defined() -> None:
    defined = {name for metric in metrics.METRICS for name in metrics.series_names(metric)}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        used = set(re.findall(r"\bresforge:[\w:]+", rule["expr"]))
        assert used <= recorded, rule
        assert names(rule["expr"]) <= defined, rule
        assert used or names(rule["expr"]) or "up{" in rule["expr"], rule
    asked = " ".join(rule["expr"] for rule in rules())
    assert all(record in asked for record in recorded), "a recording that no alert asks for"


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_tells_a_person_what_is_wrong_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert all(text.endswith(".") for name, text in rule["annotations"].items() if name != "runbook_url")
    assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{alert.lower()}"
    assert alert.lower() in anchors()


def test_every_runbook_has_its_alert() -> None:
    assert {anchor for anchor in anchors() if anchor.startswith("resforge")} == {alert.lower() for alert in ALERTS}


def test_jobs_that_fail_by_their_own_fault_wake_nobody() -> None:
    excluded = re.search(r'reason!~"([^"]+)"', ALERTS["ResforgeJobsFail"]["expr"])
    assert excluded is not None
    assert set(excluded[1].split("|")) == {str(reason) for reason in USER_ERRORS}


def test_every_alert_is_tested_both_ways() -> None:
    cases = [
        (case["alertname"], bool(case["exp_alerts"]))
        for test in yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    assert set(cases) == {(alert, fires) for alert in ALERTS for fires in (True, False)}


@pytest.mark.stack  # not for its time, which is a second: it needs promtool, which `make check` does without
@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("test", "rules", "rules_test.yml")],
    ids=["the configuration is valid", "alerts fire when they should"],
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([PROMTOOL.require(), *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_an_alert_looks_at_is_taken_from_it() -> None:
    assert compared('absent(resforge_build_info{component="api"})') == ['resforge_build_info{component="api"}']
    assert compared("resforge:http_errors:ratio_rate5m > 0.05") == ["resforge:http_errors:ratio_rate5m"]
    assert compared("max(a{b!~'c'}) == 0\nand max(resforge_d) < min(resforge_e)") == [
        "max(a{b!~'c'})", "max(resforge_d)", "min(resforge_e)",
    ]  # fmt: skip
