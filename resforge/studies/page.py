"""A study's report as one page of HTML, with its pictures inside; it needs nothing else and runs no scripts."""

import base64
import html
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resforge.studies.benches import SETTINGS
from resforge.studies.catalog import STUDIES
from resforge.studies.curves import draw
from resforge.studies.published import Published
from resforge.studies.report import Finding, Measured, Series, Spread, StudyReport

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #5b6570; --line: #d8dee4; --card: #f6f8fa;
  --yes: #1a7f37; --no: #b35900; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --soft: #9aa5b1; --line: #30363d;
  --card: #161b22; --yes: #3fb950; --no: #e09b3d; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 66rem;
  margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .4rem 0; } .soft { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; font-size: .85rem; color: var(--soft); vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child, th.published, td.published { text-align: left; }
td .soft { display: block; font-size: .78rem; }
.finding { background: var(--card); border-left: 4px solid var(--soft); border-radius: 4px; padding: .6rem .9rem;
  margin: .6rem 0; }
.finding.yes { border-color: var(--yes); } .finding.no { border-color: var(--no); }
.finding b { text-transform: uppercase; font-size: .75rem; letter-spacing: .04em; margin-right: .6rem;
  color: var(--soft); }
.finding.yes b { color: var(--yes); } .finding.no b { color: var(--no); }
td.published { white-space: normal; min-width: 11rem; }
.mark { font-size: .72rem; border: 1px solid currentColor; border-radius: 3px; padding: 0 .3rem; margin-left: .4rem;
  color: var(--soft); white-space: nowrap; } .mark.yes { color: var(--yes); }
figure { margin: 0; } figure svg { width: 100%; height: auto; } figcaption { text-align: center; }
.pictures img { width: 100%; border-radius: 6px; background: #fff; }
.warn { border: 1px solid var(--no); border-radius: 4px; padding: .6rem .9rem; margin: 1rem 0; }
details { margin-top: 1rem; } summary { cursor: pointer; color: var(--soft); }
"""


def render(report: StudyReport, pictures: Mapping[str, Sequence[bytes]] | None = None) -> str:
    """The page. Everything that came from a job or a person is escaped.

    Args:
        pictures: PNG by the key of the reading that left them.
    """
    spec = report.spec
    seeds = f"{len(spec.seeds)} seed{'s' if len(spec.seeds) > 1 else ''} ({', '.join(map(str, spec.seeds))})"
    sections = (
        _unfinished(report.members),
        _section("What it says", _findings(report.findings)),
        _section("Curves", [_curves(report)]),
        _section("What was measured", [_table(report)]),
        _section("Inside the networks", _readings(report, pictures or {})),
        _section("How it was measured", [_conditions(report)]),
    )
    title = html.escape(f"{spec.name}: {report.title}" if spec.name else f"Study: {report.title}")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{_STYLE}</style></head><body>
<h1>{title}</h1>
<p>{html.escape(STUDIES[spec.study])}</p>
<p class="soft">{html.escape(report.id)}, {seeds}, made {report.made_at:%Y-%m-%d %H:%M} UTC</p>
{"".join(sections)}
</body></html>
"""


def _section(title: str, parts: Iterable[str]) -> str:
    body = "".join(parts)
    return f"<h2>{title}</h2>{body}" if body else ""


def _unfinished(members: Sequence[Measured]) -> str:
    lines = "".join(
        f"<li>{html.escape(member.key)} ({html.escape(member.job)}): {html.escape(member.outcome)}"
        f"{html.escape('. ' + member.message) if member.message else ''}</li>"
        for member in members
        if member.outcome != "succeeded"
    )
    if not lines:
        return ""
    return f'<div class="warn"><b>Incomplete.</b> These jobs have no figures, and are left out:<ul>{lines}</ul></div>'


def _findings(findings: Sequence[Finding]) -> Iterable[str]:
    counts = [sum(finding.holds is holds for finding in findings) for holds in (True, False, None)]
    words = ("hold", "do not hold", "are not known yet")
    told = ", ".join(f"{count} {word}" for count, word in zip(counts, words, strict=True) if count)
    if findings:
        yield f'<p class="soft">Of {len(findings)} statements {told}. Differences are in percentage points.</p>'
    yield from map(_finding, findings)


def _finding(finding: Finding) -> str:
    known = {None: ("", "not known yet"), True: ("yes", "holds"), False: ("no", "does not hold")}
    kind, word = known[finding.holds]
    numbers = html.escape("; ".join(_numbers(finding.numbers)))
    statement = html.escape(finding.statement)
    return f'<div class="finding {kind}"><b>{word}</b>{statement}<div class="soft">{numbers}</div></div>'


def _numbers(numbers: Mapping[str, Any]) -> Iterable[str]:
    for name, value in numbers.items():
        words = name.replace("_", " ")
        if isinstance(value, Mapping):
            by_seed = ", ".join(f"{_number(inner)} (seed {seed})" for seed, inner in value.items())
            yield f"{words.removesuffix(' by seed')}: {by_seed or '-'}"
        elif value is not None:
            yield f"{words}: {_number(value)}"


def _number(value: object) -> str:
    return (f"{value:.3g}" if abs(value) < 0.01 else f"{value:.2f}") if isinstance(value, float) else str(value)


def _table(report: StudyReport) -> str:
    protocol = any(item.protocol_error for item in report.series)
    metrics = {item.published.metric for item in report.series if item.published}
    names = ["network", "seeds", "training error %", "batches of the last epoch %", "test error %"]
    heads = [f"<th>{name}" for name in (*names, *(["10-crop error %"] if protocol else []))]
    if metrics:
        heads.append(f'<th class="published">published: {html.escape(", ".join(sorted(metrics)))} %')
    heads.append("<th>time of one")
    rows = "".join(
        f"<tr>{''.join(_cells(item, len(report.spec.seeds), protocol=protocol, compare=bool(metrics)))}</tr>"
        for item in report.series
    )
    table = f'<div class="scroll"><table><tr>{"".join(heads)}</tr>{rows}</table></div>'
    notes = [
        "Errors are top-1 at the last step: mean and sample standard deviation over seeds. The training error is that "
        "of every training image, without augmentation and with running batch norm statistics."
    ]
    if any(item.published and not item.published.comparable for item in report.series):
        notes.append(
            "Published figures that are not comparable are of other images, another protocol or another schedule; they "
            "are there for orientation."
        )
    return table + "".join(f'<p class="soft">{note}</p>' for note in notes)


def _cells(item: Series, seeds: int, *, protocol: bool, compare: bool) -> Iterable[str]:
    yield f"<td>{html.escape(item.name)}"
    figures = [item.train_error, item.running_train_error, item.test_error]
    measured = max((len(figure.values) for figure in figures if figure), default=0)
    yield f"<td>{measured}" if measured == seeds else f"<td>{measured} of {seeds}"
    for figure in [*figures, item.protocol_error] if protocol else figures:
        yield f"<td>{_figure(figure)}"
    if compare:
        yield f'<td class="published">{_published(item.published)}'
    yield f"<td>{_duration(item.seconds.mean) if item.seconds else '-'}"


def _published(published: Published | None) -> str:
    if published is None:
        return "-"
    text = published.note if published.error is None else f"{published.error:.2f}"
    mark = (
        '<span class="mark yes">comparable</span>'
        if published.comparable
        else '<span class="mark">not comparable</span>'
    )
    more = (
        f"{published.source}; {published.note}" if published.note and published.error is not None else published.source
    )
    return f'{html.escape(text)}{mark}<span class="soft">{html.escape(more)}</span>'


def _figure(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.mean:.2f}" if spread.std is None else f"{spread.mean:.2f} ± {spread.std:.2f}"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.1f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _curves(report: StudyReport) -> str:
    panels: dict[str, dict[str, list[Measured]]] = defaultdict(lambda: defaultdict(list))
    # Plain and residual networks side by side, as in figure 6.
    apart = report.spec.study in ("degradation", "identity")
    for member in report.members:
        if member.role == "training":
            kind = {"plain": "plain", "resnet": "residual"}[member.series.split("-")[0]] if apart else ""
            panels[kind][member.series].append(member)
    if not any(member.train_curve or member.test_curve for member in report.members):
        return ""
    return (
        f'<figure>{draw(panels)}<figcaption class="soft">Training error (of batches) dashed, test error solid; means '
        "over the seeds that have succeeded, or over all while none has, and the range of the test errors shaded. The "
        "axis ends where the last errors need it; what stays above it is in the table.</figcaption></figure>"
    )


def _readings(report: StudyReport, pictures: Mapping[str, Sequence[bytes]]) -> Iterable[str]:
    for member in report.members:
        if member.role != "reading" or member.report is None:
            continue
        found = member.report
        images = "".join(
            f'<img alt="{html.escape(found.title)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
            for data in pictures.get(member.key, ())
        )
        shown = f"{found.source}; {found.images:,} images of {found.dataset} ({found.split}), seed {member.seed}"
        yield (
            f'<h3>{html.escape(f"{member.series}: {found.title}")}</h3><div class="pictures">{images}</div>'
            f'<p class="soft">{html.escape(shown)}, {html.escape(found.job)}</p>'
        )


def _conditions(report: StudyReport) -> str:
    spec = report.spec
    facts = [
        f"setting {spec.setting}: {SETTINGS[spec.setting]}",
        f"overrides: {json.dumps(spec.overrides) if spec.overrides else 'none'}",
        f"ran on: {', '.join(report.devices) or 'not told by the jobs'}",
        "versions: " + (", ".join(f"{name} {version}" for name, version in report.versions.items()) or "not told"),
    ]
    rows = "".join(
        f"<tr><td>{html.escape(member.key)}<td>{html.escape(member.job)}<td>{html.escape(member.outcome)}"
        f"<td>{_maybe(member.train_error)}<td>{_maybe(member.test_error)}"
        f"<td>{_duration(member.seconds) if member.seconds is not None else '-'}"
        f"<td>{f'{member.images_per_second:,.0f}' if member.images_per_second else '-'}</tr>"
        for member in report.members
    )
    jobs = (
        '<details><summary>Every job</summary><div class="scroll"><table><tr><th>member<th>job<th>outcome'
        f"<th>training error %<th>test error %<th>time<th>images/s</tr>{rows}</table></div></details>"
    )
    return "".join(f"<p>{html.escape(fact)}</p>" for fact in facts) + jobs


def _maybe(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
