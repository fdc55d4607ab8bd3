"""The few kinds of panels that the dashboards are made of, so that alike things look alike."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from grafana_foundation_sdk.builders import bargauge, common, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.common import (
    BarGaugeDisplayMode,
    BigValueColorMode,
    BigValueGraphMode,
    GraphDrawStyle,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Threshold
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "resforge"
GREEN, AMBER, RED, BLUE = "green", "orange", "red", "blue"

# Panels that ask for less than this would ask between two scrapes.
LEAST_INTERVAL = "15s"


class Ask(NamedTuple):
    """A query, and what its series are called."""

    expr: str
    legend: str = ""


def dashboard(uid: str, title: str, description: str, *, since: str, refresh: str) -> builders.Dashboard:
    """An empty dashboard with what all have: the data source, where the docs are, and links to the others."""
    return (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .time(f"now-{since}", "now")
        .refresh(refresh)
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            builders.DashboardLink("Resforge")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .keep_time(True)
            .include_vars(False)
        )
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            builders.TextBoxVariable("docs")
            .label("Docs")
            .description("Where the folder docs/ is served; the links on panels begin with it.")
            .default_value("/public/resforge-docs")
        )
    )


def row(title: str) -> builders.Row:
    return builders.Row(title)


def graph(
    title: str,
    description: str,
    asks: Sequence[Ask],
    *,
    unit: str,
    docs: str,
    width: int = 12,
    stacked: bool = False,
    bars: bool = False,
    least: float | None = 0,
    most: float | None = None,
    warn_at: float | None = None,
    log_scale: bool = False,
    decimals: int | None = None,
) -> timeseries.Panel:
    """Lines over time, or bars. `warn_at` is drawn as a dashed line; `docs` is a section of docs/operations.md."""
    panel = (
        timeseries.Panel()
        .height(8)
        .line_width(1)
        .fill_opacity(40 if stacked or bars else 8)
        .show_points(VisibilityMode.AUTO)
        .draw_style(GraphDrawStyle.BARS if bars else GraphDrawStyle.LINE)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.TABLE)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if log_scale:
        panel.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))
    elif least is not None:
        panel.min(least)
    if most is not None:
        panel.max(most)
    if warn_at is not None:
        panel.thresholds(_steps((None, "transparent"), (warn_at, RED)))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    if decimals is not None:
        panel.decimals(decimals)
    return _common(panel, title, description, unit, docs, width, [_query(ask) for ask in asks])


def number(
    title: str,
    description: str,
    ask: Ask,
    *,
    unit: str,
    docs: str,
    width: int = 4,
    steps: Sequence[tuple[float | None, str]] = ((None, BLUE),),
    decimals: int | None = None,
    spark: bool = True,
) -> stat.Panel:
    """One number, coloured by the step that it has reached."""
    panel = (
        stat.Panel()
        .height(4)
        .thresholds(_steps(*steps))
        .color_scheme(builders.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.AREA if spark else BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if decimals is not None:
        panel.decimals(decimals)
    return _common(panel, title, description, unit, docs, width, [_query(ask)])


def ranking(
    title: str, description: str, ask: Ask, *, unit: str, docs: str, width: int = 12, none: str
) -> bargauge.Panel:
    """A bar for each series over the whole time shown; `none` is what it says where there is no series."""
    panel = (
        bargauge.Panel()
        .height(8)
        .orientation(VizOrientation.HORIZONTAL)
        .display_mode(BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_steps((None, AMBER)))
        .color_scheme(builders.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .min(0)
        .decimals(0)
        .no_value(none)
    )
    return _common(panel, title, description, unit, docs, width, [_query(ask).instant()])


def rows_of(
    title: str,
    description: str,
    columns: Sequence[tuple[str, str, str]],
    *,
    docs: str,
    labels: Sequence[str],
    link: tuple[str, str, str] | None = None,
    width: int = 24,
    none: str,
) -> table.Panel:
    """A table with a row for each set of labels, and a column for each (name, unit, query).

    Args:
        link: the column, the title and the URL of a link on its cells.
    """
    panel = table.Panel().height(8).no_value(none).filterable(True)
    queries = []
    names = {"Time": "", **{label: label for label in labels}}
    for index, (name, unit, expr) in enumerate(columns):
        ref = chr(ord("A") + index)
        queries.append(_query(Ask(expr)).instant().format(PromQueryFormat.TABLE).ref_id(ref))
        names[f"Value #{ref}"] = name
        panel.override_by_name(name, [models.DynamicConfigValue("unit", unit)])
    panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    panel.with_transformation(
        models.DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": {"Time": True},
                "indexByName": {name: place for place, name in enumerate(names)},
                "renameByName": {old: new for old, new in names.items() if new},
            },
        )
    )
    if link is not None:
        column, text, url = link
        panel.override_by_name(column, [models.DynamicConfigValue("links", [{"title": text, "url": url}])])
    return _common(panel, title, description, "short", docs, width, queries)


def _common(
    panel: Any, title: str, description: str, unit: str, docs: str, width: int, queries: Sequence[Dataquery]
) -> Any:
    panel.title(title).description(description).unit(unit).span(width).datasource(SOURCE).interval(LEAST_INTERVAL)
    panel.links([builders.DashboardLink("What it means").url(f"${{docs}}/operations.md#{docs}").target_blank(True)])
    for index, query in enumerate(queries):
        panel.with_target(query.ref_id(chr(ord("A") + index)))
    return panel


def _query(ask: Ask) -> Dataquery:
    return Dataquery().expr(ask.expr).legend_format(ask.legend).datasource(SOURCE).range()


def _steps(*steps: tuple[float | None, str]) -> builders.ThresholdsConfig:
    thresholds = [Threshold(value=value, color=colour) for value, colour in steps]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(thresholds)
