"""The fleet: what waits, what runs, what was lost, and what the machines are given to."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import AMBER, GREEN, RED, Ask, dashboard, graph, number, ranking, row, rows_of
from deploy.grafana.queries import highest, increase, quantile, series, total
from resforge import metrics
from resforge.jobs import TERMINAL

DOCS = "the-fleet-dashboard"
ENDED = "|".join(sorted(TERMINAL))
HOUR = "1h"
JOB_LABELS = ("job_id", "project", "model", "dataset")


def _jobs(where: str, *by: str) -> str:
    return highest(series(metrics.JOBS, where), *by)


def _resource(metric: metrics.Metric, resource: str) -> str:
    return highest(series(metric, f'resource="{resource}"'))


def _resources(resource: str) -> list[Ask]:
    return [
        Ask(_resource(metrics.RESOURCES_CAPACITY, resource), "there are"),
        Ask(_resource(metrics.RESOURCES_ALLOCATED, resource), "given to jobs"),
        Ask(_resource(metrics.RESOURCES_WANTED, resource), "waited for"),
    ]


def _share(resource: str) -> str:
    allocated, capacity = (_resource(m, resource) for m in (metrics.RESOURCES_ALLOCATED, metrics.RESOURCES_CAPACITY))
    return f"{allocated} / clamp_min({capacity}, 1)"


def _of_job(value: str) -> str:
    """A value by job, with the labels that tell the job."""
    return (
        f"{value} * on (job_id) group_left (project, model, dataset) {highest(series(metrics.JOB_INFO), *JOB_LABELS)}"
    )


def _ended(metric: metrics.Metric, where: str) -> str:
    """How many ended so in the time shown, by reason."""
    return f"{total(increase(metric, where, over='$__range'), 'reason')} > 0"


def _by_job(metric: metrics.Metric) -> str:
    return highest(series(metric), "job_id")


def build() -> Dashboard:
    return (
        dashboard(
            "resforge-fleet",
            "Resforge / Fleet",
            "Jobs by state, how long they wait and start, what they are given, and why some fail.",
            since="6h",
            refresh="30s",
        )
        .with_row(row("Now"))
        .with_panel(number("Running", "Jobs that train now.", Ask(_jobs('state="RUNNING"')), unit="short", docs=DOCS))
        .with_panel(
            number(
                "Waiting",
                "Jobs in the queue. Each job's own `reason` says what it waits for.",
                Ask(_jobs('state="QUEUED"')),
                unit="short",
                docs="resforgejobswaitlong",
            )
        )
        .with_panel(
            number(
                "Oldest waits for",
                metrics.QUEUE_OLDEST.help,
                Ask(highest(series(metrics.QUEUE_OLDEST))),
                unit="s",
                docs="resforgejobswaitlong",
                steps=((None, GREEN), (3600, AMBER), (6 * 3600, RED)),
            )
        )
        .with_panel(
            number(
                "GPUs given to jobs",
                "Share of the GPUs there are.",
                Ask(_share("gpu")),
                unit="percentunit",
                docs=DOCS,
                decimals=0,
            )
        )
        .with_panel(
            number(
                "CPUs given to jobs",
                "Share of the CPUs there are.",
                Ask(_share("cpu")),
                unit="percentunit",
                docs=DOCS,
                decimals=0,
            )
        )
        .with_panel(
            number(
                "Failed",
                "Jobs that failed in the time shown.",
                Ask(total(increase(metrics.JOBS_ENDED, 'state="FAILED"', over="$__range"))),
                unit="short",
                docs="resforgejobsfail",
                steps=((None, GREEN), (1, AMBER)),
                decimals=0,
            )
        )
        .with_row(row("Jobs"))
        .with_panel(
            graph(
                "Jobs by state",
                "Jobs that have not ended. Several API servers tell the same, of which one is shown.",
                [Ask(_jobs(f'state!~"{ENDED}"', "state"), "{{state}}")],
                unit="short",
                docs=DOCS,
                stacked=True,
                decimals=0,
            )
        )
        .with_panel(
            graph(
                "Jobs that ended",
                "How many, and how, in each interval.",
                [Ask(total(increase(metrics.JOBS_ENDED), "state"), "{{state}}")],
                unit="short",
                docs=DOCS,
                bars=True,
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Wait in the queue",
                f"{metrics.QUEUE_SECONDS.help} Of the jobs that began within the hour before.",
                [
                    Ask(quantile(0.5, metrics.QUEUE_SECONDS, over=HOUR), "median"),
                    Ask(quantile(0.95, metrics.QUEUE_SECONDS, over=HOUR), "95 %"),
                ],
                unit="s",
                docs="resforgejobswaitlong",
            )
        )
        .with_panel(
            graph(
                "Time to the first step",
                f"{metrics.FIRST_STEP_SECONDS.help} Of the jobs that began within the hour before.",
                [
                    Ask(quantile(0.5, metrics.FIRST_STEP_SECONDS, over=HOUR), "median"),
                    Ask(quantile(0.95, metrics.FIRST_STEP_SECONDS, over=HOUR), "95 %"),
                ],
                unit="s",
                docs="resforgejobsstartslowly",
                warn_at=600,
            )
        )
        .with_panel(
            rows_of(
                "Jobs in training",
                "What reports now. A job's id leads to its own dashboard.",
                [
                    (
                        "Progress",
                        "percentunit",
                        _of_job(f"({_by_job(metrics.STEP)} / {_by_job(metrics.TOTAL_STEPS)})"),
                    ),
                    ("Images/s", "short", _of_job(_by_job(metrics.IMAGES_PER_SECOND))),
                    ("Loss", "short", _of_job(_by_job(metrics.TRAIN_LOSS))),
                    ("Left", "s", _of_job(_by_job(metrics.ETA_SECONDS))),
                ],
                docs=DOCS,
                labels=JOB_LABELS,
                link=(
                    "job_id",
                    "This job",
                    "/d/resforge-job?var-datasource=${datasource}&var-job=${__value.raw}&${__url_time_range}",
                ),
                none="no job trains now",
            )
        )
        .with_row(row("Machines"))
        .with_panel(
            graph(
                "GPUs",
                "Given: to attempts that have not ended. Waited for: by jobs that have not begun.",
                _resources("gpu"),
                unit="short",
                docs=DOCS,
                decimals=0,
            )
        )
        .with_panel(graph("CPUs", "As for the GPUs.", _resources("cpu"), unit="short", docs=DOCS, decimals=0))
        .with_row(row("Failures"))
        .with_panel(
            ranking(
                "Jobs that failed, by reason",
                "In the time shown. docs/operations.md tells what each reason means and asks for.",
                Ask(
                    _ended(metrics.JOBS_ENDED, 'state="FAILED"'),
                    "{{reason}}",
                ),
                unit="short",
                docs="resforgejobsfail",
                none="no job failed",
            )
        )
        .with_panel(
            ranking(
                "Attempts that did not succeed, by reason",
                "In the time shown. A job outlives a lost attempt; these tell of trouble that nobody else saw.",
                Ask(
                    _ended(metrics.ATTEMPTS_ENDED, 'state!="SUCCEEDED"'),
                    "{{reason}}",
                ),
                unit="short",
                docs="resforgeattemptslost",
                none="no attempt was lost",
            )
        )
    )
