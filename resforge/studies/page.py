"""A study's report as one page of HTML, with its curves inside; it needs nothing else."""

import html
import io
from collections import defaultdict

from resforge.studies.report import Measured, Series, Spread, StudyReport

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .3rem .6rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr { border-bottom: 1px solid #8886; }
figure { margin: 0; background: white; border-radius: 6px; } svg { width: 100%; height: auto; }
.yes { color: #1a7f37; } .no { color: #cf222e; } .small { font-size: .85rem; opacity: .8; }
"""


def render(report: StudyReport) -> str:
    """The page. Everything that came from a job or a person is escaped."""
    title = html.escape(f"Study: {report.title}")
    rows = "".join(_row(item) for item in report.series)
    findings = "".join(
        f'<li><b class="{_class(item.holds)}">{_word(item.holds)}</b>: {html.escape(item.statement)}'
        f'<br><span class="small">{html.escape(_numbers(item.numbers))}</span></li>'
        for item in report.findings
    )
    unfinished = (
        f"<p><b>Not finished:</b> {html.escape(', '.join(report.unfinished))}. Their figures are left out.</p>"
        if report.unfinished
        else ""
    )
    seeds = html.escape(", ".join(map(str, report.spec.seeds)))
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>{_STYLE}</style>
<h1>{title}</h1>
<p class="small">{html.escape(report.id)}; seeds {seeds}; made {report.made_at:%Y-%m-%d %H:%M} UTC.
Errors are top-1, in percent: mean and standard deviation over seeds.</p>
{unfinished}
<figure>{_curves(report.members)}</figure>
<h2>What was measured</h2>
<table><tr><th>network<th>training error<th>of the last epoch's batches<th>test error<th>seeds<th>published
(CIFAR-10 test)</tr>{rows}</table>
{f"<h2>What it says</h2><ul>{findings}</ul>" if findings else ""}
</html>
"""


def _row(item: Series) -> str:
    count = len(item.train_error.values) if item.train_error else 0
    published = "-" if item.published is None else f"{item.published:.2f}"
    source = f' title="{html.escape(item.published_source)}"' if item.published_source else ""
    cells = (_figure(item.train_error), _figure(item.running_train_error), _figure(item.test_error), str(count))
    return f"<tr><td>{html.escape(item.name)}<td>{'<td>'.join(cells)}<td{source}>{published}</tr>"


def _figure(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.mean:.2f}" if spread.std is None else f"{spread.mean:.2f} ± {spread.std:.2f}"


def _class(holds: bool | None) -> str:
    return "" if holds is None else "yes" if holds else "no"


def _word(holds: bool | None) -> str:
    return "not known yet" if holds is None else "holds" if holds else "does not hold"


def _numbers(numbers: dict[str, object]) -> str:
    def text(value: object) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key}: {text(inner)}" for key, inner in value.items()) + "}"
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    return "; ".join(f"{key.replace('_', ' ')} {text(value)}" for key, value in numbers.items())


def _curves(members: tuple[Measured, ...]) -> str:
    """The curves as SVG: training error dashed, test error solid, as in the paper's figures; means over seeds."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    by_series: dict[str, list[Measured]] = defaultdict(list)
    for member in members:
        by_series[member.series].append(member)
    with mpl.rc_context({"svg.hashsalt": "resforge", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.subplots()
        for index, (name, group) in enumerate(by_series.items()):
            colour = f"C{index % 10}"
            for curves, style, width, label in (
                ([member.train_curve for member in group], "--", 1.0, None),
                ([member.test_curve for member in group], "-", 2.0, name),
            ):
                steps, mean, low, high = _mean(curves)
                axes.plot(steps, mean, style, color=colour, linewidth=width, label=label if steps else None)
                if style == "-" and len(group) > 1:
                    axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel="step", ylabel="error (%)", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.set_title("training error dashed, test error solid", fontsize=10)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _mean(
    curves: list[tuple[tuple[int, float], ...]],
) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps that all curves have, with the mean, least and most of their errors there."""
    points = [dict(curve) for curve in curves if curve]
    if not points:
        return [], [], [], []
    steps = sorted(set.intersection(*(set(item) for item in points)))
    values = [[item[step] for item in points] for step in steps]
    return steps, [sum(v) / len(v) for v in values], [min(v) for v in values], [max(v) for v in values]
