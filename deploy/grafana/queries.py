"""PromQL over the metrics that resforge/metrics.py defines. A name or a label that is not there fails the build."""

import re

from resforge.metrics import Metric, scraped_name

RATE = "$__rate_interval"


def series(metric: Metric, where: str = "") -> str:
    """A selector of the metric's series; `where` is its matchers, such as `state="RUNNING"`."""
    return scraped_name(metric) + _where(metric, where)


def rate(metric: Metric, where: str = "", *, over: str = RATE) -> str:
    """Its increase a second; for a histogram, that of what it counted."""
    return f"rate({_counted(metric)}{_where(metric, where)}[{over}])"


def increase(metric: Metric, where: str = "", *, over: str = RATE) -> str:
    return f"increase({_counted(metric)}{_where(metric, where)}[{over}])"


def total(expression: str, *by: str) -> str:
    return _over("sum", expression, by)


def highest(expression: str, *by: str) -> str:
    """What several replicas tell alike, once."""
    return _over("max", expression, by)


def mean(expression: str, *by: str) -> str:
    return _over("avg", expression, by)


def quantile(q: float, metric: Metric, *by: str, where: str = "", over: str = RATE) -> str:
    """A quantile of a histogram, by its labels."""
    if metric.kind != "histogram":
        raise ValueError(f"{metric.name} is a {metric.kind}; quantiles are of histograms")
    buckets = f"rate({scraped_name(metric)}_bucket{_where(metric, where)}[{over}])"
    return f"histogram_quantile({q:g}, {total(buckets, 'le', *by)})"


def share(metric: Metric, where: str, *by: str, among: str = "", over: str = RATE) -> str:
    """The share of those that match among all (or those `among` names) that were counted; 0 where none match."""
    both = ", ".join(filter(None, (where, among)))
    part, whole = total(rate(metric, both, over=over), *by), total(rate(metric, among, over=over), *by)
    return f"({part} or 0 * {whole}) / {whole}"


def _counted(metric: Metric) -> str:
    return scraped_name(metric) + ("_count" if metric.kind == "histogram" else "")


def _where(metric: Metric, where: str) -> str:
    unknown = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", where)) - set(metric.labels)
    if unknown:
        labels = ", ".join(metric.labels) or "none"
        raise ValueError(f"{metric.name} has no label {', '.join(sorted(unknown))}; it has {labels}")
    return f"{{{where}}}" if where else ""


def _over(operator: str, expression: str, by: tuple[str, ...]) -> str:
    return f"{operator} by ({', '.join(by)}) ({expression})" if by else f"{operator}({expression})"
