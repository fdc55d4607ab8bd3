"""The dashboards as they are shipped: that they are what the code builds, and what their reader needs is on them."""

import itertools
import re

import pytest

from deploy.grafana import queries as promql
from deploy.grafana.build import FOLDER, documents
from resforge import metrics
from tests.deploy.promql import anchors, dashboards, names, panels, queries

UNITS = {"short", "s", "percentunit", "bytes", "reqps", "ops"}
VARIABLES = {"__rate_interval", "__range", "job", "attempt", "project", "datasource", "docs", "__url_time_range"}


def test_the_dashboards_are_what_the_code_builds() -> None:
    committed = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert committed == documents(), "run `make dashboards`"


def test_there_are_three_that_link_to_each_other() -> None:
    assert set(dashboards()) == {"resforge-fleet", "resforge-job", "resforge-service"}
    for uid, dashboard in dashboards().items():
        assert dashboard["uid"] == uid
        assert dashboard["tags"] == ["resforge"]
        [link] = dashboard["links"]
        assert (link["type"], link["tags"], link["keepTime"]) == ("dashboards", ["resforge"], True)


def test_a_person_chooses_the_source_and_on_the_jobs_dashboard_project_job_and_attempt() -> None:
    chosen = {uid: [v["name"] for v in board["templating"]["list"]] for uid, board in dashboards().items()}
    common = ["datasource", "docs"]
    assert chosen == {
        "resforge-fleet": common,
        "resforge-job": [*common, "project", "job", "attempt"],
        "resforge-service": common,
    }
    for uid, dashboard in dashboards().items():
        used = set(re.findall(r"\$\{?(\w+)", str(dashboard["panels"]))) - {"__value"}
        assert used <= VARIABLES, f"{uid} uses what nobody sets"
        assert used & {"job", "attempt", "project"} <= set(chosen[uid])


@pytest.mark.parametrize("uid", dashboards())
def test_every_panel_says_what_it_shows_and_leads_to_the_docs(uid: str) -> None:
    dashboard = dashboards()[uid]
    shown = panels(dashboard)
    assert len({panel["title"] for panel in shown}) == len(shown)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in shown:
        where = f"{uid}: {panel['title']}"
        assert len(panel["description"]) > 15, where
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, where
        assert panel["datasource"]["uid"] == "${datasource}", where
        [link] = panel["links"]
        base, _, anchor = link["url"].partition("#")
        assert base == "${docs}/operations.md", where
        assert anchor in anchors(), where
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references), where


def test_lines_are_named_by_what_tells_them_apart() -> None:
    for query in queries():
        by = re.findall(r"by \(([^)]*)\)", query.expr)
        labels = set(by[0].split(", ")) - {"le"} if by else set()
        if query.legend and "group_left" not in query.expr and not query.expr.startswith(("count(", "sum(max")):
            assert set(re.findall(r"{{(\w+)}}", query.legend)) == labels, query
    for uid, dashboard in dashboards().items():
        for panel in panels(dashboard):
            if panel["type"] == "timeseries":
                legends = [target["legendFormat"] for target in panel["targets"]]
                assert all(legends), f"{uid}: {panel['title']}"
                assert len(set(legends)) == len(legends), f"{uid}: {panel['title']}"


@pytest.mark.parametrize("uid", dashboards())
def test_panels_lie_side_by_side_and_never_over_each_other(uid: str) -> None:
    places = [panel["gridPos"] for panel in dashboards()[uid]["panels"]]
    taken = [
        {(x, y) for x in range(p.get("x", 0), p.get("x", 0) + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
        for p in places
    ]
    assert all(p.get("x", 0) + p["w"] <= 24 for p in places)
    assert not any(one & other for one, other in itertools.combinations(taken, 2))


def test_every_query_asks_for_metrics_that_are_defined() -> None:
    defined = {name for metric in metrics.METRICS for name in metrics.series_names(metric)}
    for query in queries():
        assert names(query.expr), query
        assert names(query.expr) <= defined, query


def test_every_metric_is_seen_on_a_dashboard() -> None:
    seen = set().union(*(names(query.expr) for query in queries()))
    unseen = [m.name for m in metrics.METRICS if not seen & set(metrics.series_names(m))]
    assert unseen == []


def test_a_label_or_a_quantile_that_a_metric_has_not_fails_the_build() -> None:
    with pytest.raises(ValueError, match="resforge_jobs has no label status; it has state"):
        promql.series(metrics.JOBS, 'status="RUNNING"')
    with pytest.raises(ValueError, match="resforge_step is a gauge; quantiles are of histograms"):
        promql.quantile(0.5, metrics.STEP)


def test_a_share_is_0_where_none_match() -> None:
    expected = '(sum(rate(a_total{x="1"}[5m])) or 0 * sum(rate(a_total[5m]))) / sum(rate(a_total[5m]))'
    assert promql.share(metrics.Metric("a_total", "counter", "help", ("x",)), 'x="1"', over="5m") == expected
