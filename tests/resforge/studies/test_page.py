"""The page that shows a study: what stands on it, and that it stands alone."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from resforge.reports import Report
from resforge.studies import STUDIES, StudyDocument, StudyReport, StudySpec, expand
from resforge.studies.page import render
from resforge.studies.report import Measured, summarise

T0 = datetime(2026, 1, 1, tzinfo=UTC)
EVIL = "<script>alert('x')</script>"


def report(study: str = "degradation", setting: str = "small", errors: Any = None, **fields: Any) -> StudyReport:
    """A report in which a training's errors are given by its series, None for one that has failed."""
    named = {"target": "cifar100"} if (study, setting) == ("transfer", "cifar10") else {}
    spec = StudySpec.model_validate({"study": study, "setting": setting, "seeds": 2, **named, **fields})
    found = []
    for index, member in enumerate(expand(spec)):
        error = (errors or {}).get(member.series, (10.0, 12.0))[member.seed]
        trains = member.role in ("training", "start")
        looked = Report(
            kind="analyse", name="responses", title=f"Responses {EVIL}", job=f"job-{index}", attempt=1, checkpoints=(),
            dataset="d", split="test", images=10, values={}, seconds=1, device="cpu", made_at=T0, source="fig. 7",
        )  # fmt: skip
        found.append(
            Measured(
                key=member.key, series=member.series, seed=member.seed, role=member.role, job=f"job-{index}",
                outcome="failed" if error is None else "succeeded", message=EVIL if error is None else "",
                train_error=error if trains else None, running_train_error=error if trains else None,
                test_error=error if trains or member.role == "evaluation" else None, train_loss=error, test_loss=error,
                train_curve=((1, 90.0), (2, 50.0)), test_curve=((2, 55.0),), seconds=180.0, images_per_second=1234.0,
                device="NVIDIA H100", versions={"torch": "2.9"},
                report=looked if member.role == "reading" else None,
            )
        )  # fmt: skip
    return summarise(StudyDocument(id="study-<b>", project="demo", spec=spec, members=(), created_at=T0), found)


@pytest.mark.parametrize(("study", "setting"), [(study, s) for study in STUDIES for s in ("digits", "cifar10")])
def test_every_study_has_a_page_that_needs_nothing_else(study: str, setting: str) -> None:
    page = render(report(study, setting))
    assert "<svg" in page
    assert STUDIES[study].replace("'", "&#x27;") in page
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    for words in ("NVIDIA H100", "torch 2.9", f"setting {setting}", "11.00 ± 1.41", "3.0 min", "1,234"):
        assert words in page


def test_what_came_from_elsewhere_is_escaped() -> None:
    page = render(report(errors={"plain-56": (None, 30.0)}, name="a.b", overrides={"regularisation": {"x": EVIL}}))
    assert "study-&lt;b&gt;" in page
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 2


def test_findings_say_plainly_whether_they_hold() -> None:
    page = render(report(errors={"plain-20": (10, 10), "plain-56": (20, None), "resnet-56": (14, 18)}))
    told = re.findall(r'class="finding (\w*)"><b>([^<]*)</b>([^<]*)<', page)
    assert told == [
        ("", "not known yet", "plain-56 has a higher training error than plain-20, in every seed"),
        ("no", "does not hold", "resnet-56 has no higher training error than resnet-20, in mean"),
        ("yes", "holds", "from 20 to 56 layers the residual gap is at most half of the plain one, in mean"),
    ]
    assert "Of 3 statements 1 hold, 1 do not hold, 1 are not known yet." in page
    assert "seeds missing: 1" in page
    assert "plain-56/seed-1" in page
    assert "1 of 2" in page


def rows(page: str) -> Sequence[str]:
    return re.findall(r"<tr><td>(?:plain|resnet|preact)-.*?</tr>", page)


def test_published_figures_stand_beside_and_are_marked() -> None:
    by_name = {row.split("<td")[1].removeprefix(">"): row for row in rows(render(report(setting="cifar10")))}
    assert '8.75<span class="mark yes">comparable</span>' in by_name["resnet-20"]
    assert "He et al. 2015, table 6" in by_name["resnet-20"]
    assert '13.31<span class="mark">not comparable</span>' in by_name["plain-56"]
    for row in rows(render(report(setting="small")))[:4]:
        assert "not comparable" in row
    digits = render(report(setting="digits"))
    assert "published" not in digits.split("</style>")[1]


def test_imagenets_ten_crop_errors_have_a_column() -> None:
    page = render(report("depth", "imagenet", seeds=1, depths=[18]))
    assert "10-crop error %" in page
    assert "27.88" in page
    assert "10-crop error %" not in render(report())


def test_pictures_of_readings_lie_in_the_page() -> None:
    found = report()
    page = render(found, {"plain-20/seed-0/responses": [b"\x89PNG picture"]})
    assert 'src="data:image/png;base64,iVBORyBwaWN0dXJl"' in page
    assert "fig. 7; 10 images of d (test), seed 0" in page
    assert "Inside the networks" not in render(report(readings=False))


def test_curves_show_training_errors_dashed_and_test_errors_solid() -> None:
    page = render(report())
    svg = page[page.index("<svg") : page.index("</svg>")]
    dashed = re.findall(r'<path d="[^"]*"[^>]*style="[^"]*stroke-dasharray[^"]*"', svg)
    assert len(dashed) == 4  # of four networks
    for name in ("plain-20", "plain-56", "resnet-20", "resnet-56", ">plain<", ">residual<"):
        assert name in svg


def test_a_study_that_has_only_begun_has_a_page_without_figures() -> None:
    spec = StudySpec.model_validate({"study": "degradation", "setting": "small", "seeds": 1})
    members = [
        Measured(key=m.key, series=m.series, seed=m.seed, role=m.role, job="job-1", outcome="unfinished")
        for m in expand(spec)
    ]
    found = summarise(StudyDocument(id="study-1", project="demo", spec=spec, members=(), created_at=T0), members)
    page = render(found)
    assert "<svg" not in page
    assert "Incomplete." in page
    assert page.count("not known yet</b>") == 3
    assert "ran on: not told by the jobs" in page
