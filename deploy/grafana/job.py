"""One job: does it learn, how fast is it, where does its time go, and is it safe?"""

from grafana_foundation_sdk.builders.dashboard import Dashboard, QueryVariable
from grafana_foundation_sdk.models.dashboard import VariableRefresh, VariableSort

from deploy.grafana.panels import AMBER, BLUE, GREEN, RED, SOURCE, Ask, dashboard, graph, number, row
from deploy.grafana.queries import highest, rate, series, total
from resforge import metrics

DOCS = "the-job-dashboard"
JOB = 'job_id="$job", attempt=~"$attempt"'
ALL = "$__all"


def _own(metric: metrics.Metric, *by: str) -> str:
    """The job's own series. After workers were replaced, those of the dead are there for some seconds more."""
    return highest(series(metric, JOB), *by)


def _variable(name: str, label: str, query: str) -> QueryVariable:
    return (
        QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )


def _everything(variable: QueryVariable) -> QueryVariable:
    return variable.include_all(True).all_value(".*").current({"text": "All", "value": ALL})  # type: ignore[arg-type]


def build() -> Dashboard:
    info = series(metrics.JOB_INFO)
    of_project, of_job = series(metrics.JOB_INFO, 'project=~"$project"'), series(metrics.JOB_INFO, 'job_id="$job"')
    newest = "{{attempt}}"
    return (
        dashboard(
            "resforge-job",
            "Resforge / Job",
            "One training: learning, pace, devices, checkpoints. What was printed is in `resforge logs ID`.",
            since="1h",
            refresh="10s",
        )
        .with_variable(_everything(_variable("project", "Project", f"label_values({info}, project)")))
        .with_variable(_variable("job", "Job", f"label_values({of_project}, job_id)"))
        .with_variable(_everything(_variable("attempt", "Attempt", f"label_values({of_job}, attempt)")))
        .with_row(row("Now"))
        .with_panel(
            number(
                "Progress",
                "Optimiser steps done, of all that the job consists of.",
                Ask(f"{_own(metrics.STEP)} / {_own(metrics.TOTAL_STEPS)}"),
                unit="percentunit",
                docs=DOCS,
                decimals=1,
            )
        )
        .with_panel(
            number("Left", metrics.ETA_SECONDS.help, Ask(_own(metrics.ETA_SECONDS)), unit="s", docs=DOCS, spark=False)
        )
        .with_panel(
            number(
                "Test accuracy",
                metrics.TEST_TOP1.help,
                Ask(_own(metrics.TEST_TOP1)),
                unit="percentunit",
                docs=DOCS,
                decimals=2,
            )
        )
        .with_panel(
            number(
                "Images/s",
                metrics.IMAGES_PER_SECOND.help,
                Ask(_own(metrics.IMAGES_PER_SECOND)),
                unit="short",
                docs="resforgetrainingstalled",
            )
        )
        .with_panel(
            number(
                "Workers replaced",
                "Times that the workers of an attempt were replaced, in all attempts shown.",
                Ask(total(_own(metrics.RESTARTS, "attempt"))),
                unit="short",
                docs="resforgeworkersrestart",
                steps=((None, GREEN), (1, AMBER), (4, RED)),
                spark=False,
            )
        )
        .with_panel(
            number(
                "Attempts",
                "Attempts that reported in the time shown.",
                Ask(f"count({_over_range(metrics.STEP)})"),
                unit="short",
                docs="resforgeattemptslost",
                steps=((None, BLUE), (2, AMBER)),
                spark=False,
            )
        )
        .with_row(row("Learning"))
        .with_panel(
            graph(
                "Loss",
                "Mean cross-entropy in nats: of the training images as augmented, and of the held-out ones.",
                [
                    Ask(_own(metrics.TRAIN_LOSS, "attempt"), f"training, attempt {newest}"),
                    Ask(_own(metrics.TEST_LOSS, "attempt"), f"test, attempt {newest}"),
                ],
                unit="short",
                docs=DOCS,
            )
        )
        .with_panel(
            graph(
                "Accuracy",
                "Share of images whose label came first, or among the first five.",
                [
                    Ask(_own(metrics.TRAIN_TOP1, "attempt"), f"training top-1, attempt {newest}"),
                    Ask(_own(metrics.TRAIN_TOP5, "attempt"), f"training top-5, attempt {newest}"),
                    Ask(_own(metrics.TEST_TOP1, "attempt"), f"test top-1, attempt {newest}"),
                ],
                unit="percentunit",
                docs=DOCS,
                most=1,
            )
        )
        .with_panel(
            graph(
                "Gradient norm",
                f"{metrics.GRAD_NORM.help} On a logarithmic scale; gaps are steps at which it was not finite.",
                [Ask(_own(metrics.GRAD_NORM, "attempt"), f"attempt {newest}")],
                unit="short",
                docs=DOCS,
                log_scale=True,
            )
        )
        .with_panel(
            graph(
                "Learning rate",
                metrics.LEARNING_RATE.help,
                [Ask(_own(metrics.LEARNING_RATE, "attempt"), f"attempt {newest}")],
                unit="short",
                docs=DOCS,
            )
        )
        .with_row(row("Pace"))
        .with_panel(
            graph(
                "Images/s by worker",
                "Workers go in step, so one that is slow slows all; the data wait tells which.",
                [Ask(_own(metrics.WORKER_IMAGES_PER_SECOND, "rank"), "worker {{rank}}")],
                unit="short",
                docs="resforgetrainingstalled",
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Where rank 0's time goes",
                "Share of each second. Rank 0 writes the checkpoints; waiting for other workers is part of compute.",
                [Ask(total(rate(metrics.WORKER_SECONDS, f'{JOB}, rank="0"'), "phase"), "{{phase}}")],
                unit="percentunit",
                docs="resforgetrainingwaitsfordata",
                stacked=True,
                most=1,
            )
        )
        .with_panel(
            graph(
                "Waiting for data, by worker",
                "Share of each second in which a worker had no batch. More than a third is an alert.",
                [Ask(total(rate(metrics.WORKER_SECONDS, f'{JOB}, phase="data"'), "rank"), "worker {{rank}}")],
                unit="percentunit",
                docs="resforgetrainingwaitsfordata",
                most=1,
                warn_at=1 / 3,
            )
        )
        .with_panel(
            graph(
                "Seconds of a step",
                "Mean since the last report, on rank 0.",
                [
                    Ask(_own(metrics.STEP_SECONDS), "whole step"),
                    Ask(_own(metrics.DATA_WAIT_SECONDS), "of it waiting for data"),
                ],
                unit="s",
                docs="resforgetrainingwaitsfordata",
            )
        )
        .with_row(row("GPUs"))
        .with_panel(
            graph(
                "GPU utilisation by worker",
                f"{metrics.GPU_UTILISATION.help} Empty on CPUs, and on parts of a GPU (MIG).",
                [Ask(_own(metrics.GPU_UTILISATION, "rank"), "worker {{rank}}")],
                unit="percentunit",
                docs="resforgegpusidle",
                most=1,
            )
        )
        .with_panel(
            graph(
                "GPU memory by worker",
                f"{metrics.GPU_MEMORY_USED.help} `there is` is what the smallest of the GPUs has. Empty on CPUs.",
                [
                    Ask(_own(metrics.GPU_MEMORY_USED, "rank"), "worker {{rank}}"),
                    Ask(f"min({series(metrics.GPU_MEMORY, JOB)})", "there is"),
                ],
                unit="bytes",
                docs="resforgegpusidle",
            )
        )
        .with_row(row("Safety"))
        .with_panel(
            graph(
                "Checkpoints",
                "Committed and failed, counted anew whenever workers are replaced.",
                [
                    Ask(_own(metrics.CHECKPOINTS, "attempt"), f"committed, attempt {newest}"),
                    Ask(_own(metrics.CHECKPOINT_FAILURES, "attempt"), f"failed, attempt {newest}"),
                ],
                unit="short",
                docs="resforgecheckpointsfail",
                width=8,
                decimals=0,
            )
        )
        .with_panel(
            graph(
                "Seconds of a checkpoint",
                metrics.CHECKPOINT_SECONDS.help,
                [Ask(_own(metrics.CHECKPOINT_SECONDS, "attempt"), f"attempt {newest}")],
                unit="s",
                docs="resforgecheckpointsfail",
                width=8,
            )
        )
        .with_panel(
            graph(
                "Bytes of a checkpoint",
                metrics.CHECKPOINT_BYTES.help,
                [Ask(_own(metrics.CHECKPOINT_BYTES, "attempt"), f"attempt {newest}")],
                unit="bytes",
                docs="resforgecheckpointsfail",
                width=8,
            )
        )
        .with_panel(
            graph(
                "Workers replaced, over time",
                metrics.RESTARTS.help,
                [Ask(_own(metrics.RESTARTS, "attempt"), f"attempt {newest}")],
                unit="short",
                docs="resforgeworkersrestart",
                decimals=0,
            )
        )
        .with_panel(
            graph(
                "Steps and epochs",
                "Where each attempt is. One that resumes begins at the step of a checkpoint.",
                [
                    Ask(_own(metrics.STEP, "attempt"), f"step, attempt {newest}"),
                    Ask(_own(metrics.EPOCH, "attempt"), f"epoch, attempt {newest}"),
                ],
                unit="short",
                docs="resforgetrainingstalled",
                decimals=0,
            )
        )
    )


def _over_range(metric: metrics.Metric) -> str:
    return f"count by (attempt) (last_over_time({series(metric, JOB)}[$__range]))"
