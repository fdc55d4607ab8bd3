"""What a Prometheus reads at /metrics, compared with the definitions."""

import re
from collections.abc import Iterable

from resforge.metrics import Metric


def check_exposition(text: str, metrics: Iterable[Metric]) -> None:
    """Make sure that each of these metrics is there as it is defined, with a series at least, and no other."""
    metrics = list(metrics)
    declared = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    assert declared == {metric.name: metric.kind for metric in metrics}
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.M))
    assert helps == {metric.name: metric.help for metric in metrics}
    for metric in metrics:
        rows = re.findall(rf"^{metric.name}(?:_count)?(?:\{{(.*)\}})? ", text, re.M)
        assert rows, metric.name
        assert {frozenset(re.findall(r'(\w+)="', row)) for row in rows} == {frozenset(metric.labels)}
