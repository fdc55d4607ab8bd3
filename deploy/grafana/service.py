"""The service itself: the API, the controller, and what both stand on."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import AMBER, GREEN, RED, Ask, dashboard, graph, number, row, rows_of
from deploy.grafana.queries import highest, quantile, rate, series, share, total
from resforge import metrics

DOCS = "the-service-dashboard"
BROKEN = 'outcome=~"unavailable|refused|error"'
SERVER_ERROR = 'status=~"5.."'
# It says 503 while a part is not ready, which is its answer and no error.
ASKED = 'route!="/readyz"'


def errors(*by: str) -> str:
    return share(metrics.HTTP_REQUESTS, SERVER_ERROR, *by, among=ASKED)


def build() -> Dashboard:
    tick_age = highest(series(metrics.CONTROLLER_TICK_AGE))
    return (
        dashboard(
            "resforge-service",
            "Resforge / Service",
            "The API's latency and errors, the controller's lag, object storage and the database.",
            since="3h",
            refresh="30s",
        )
        .with_row(row("Now"))
        .with_panel(
            number(
                "Requests/s",
                "Over all API servers; probes and scrapes are among them.",
                Ask(total(rate(metrics.HTTP_REQUESTS))),
                unit="reqps",
                docs=DOCS,
            )
        )
        .with_panel(
            number(
                "Server errors",
                "Share of answers with a status of 500 and above.",
                Ask(errors()),
                unit="percentunit",
                docs="resforgeapierrors",
                steps=((None, GREEN), (0.01, AMBER), (0.05, RED)),
                decimals=2,
            )
        )
        .with_panel(
            number(
                "Controller's lag",
                metrics.CONTROLLER_TICK_AGE.help,
                Ask(tick_age),
                unit="s",
                docs="resforgecontrollersilent",
                steps=((None, GREEN), (10, AMBER), (60, RED)),
                decimals=1,
            )
        )
        .with_panel(
            number(
                "Controllers that act",
                "Exactly one should; the others stand by.",
                Ask(total(series(metrics.CONTROLLER_LEADER))),
                unit="short",
                docs="resforgenoleader",
                steps=((None, RED), (1, GREEN), (2, RED)),
            )
        )
        .with_panel(
            number(
                "Storage failures",
                "Share of operations on object storage that did not get an answer of use.",
                Ask(share(metrics.S3_SECONDS, BROKEN)),
                unit="percentunit",
                docs="resforgestorageerrors",
                steps=((None, GREEN), (0.01, AMBER), (0.05, RED)),
                decimals=2,
            )
        )
        .with_panel(
            number(
                "Database failures",
                "Share of transactions to which the database did not answer.",
                Ask(share(metrics.DATABASE_SECONDS, BROKEN)),
                unit="percentunit",
                docs="resforgedatabaseerrors",
                steps=((None, GREEN), (0.001, AMBER), (0.01, RED)),
                decimals=2,
            )
        )
        .with_row(row("API"))
        .with_panel(
            graph(
                "Latency",
                metrics.HTTP_SECONDS.help,
                [
                    Ask(quantile(0.5, metrics.HTTP_SECONDS), "median"),
                    Ask(quantile(0.95, metrics.HTTP_SECONDS), "95 %"),
                    Ask(quantile(0.99, metrics.HTTP_SECONDS), "99 %"),
                ],
                unit="s",
                docs="resforgeapislow",
                warn_at=2,
            )
        )
        .with_panel(
            graph(
                "Latency by route, 95 %",
                f"{metrics.HTTP_SECONDS.help} Routes are templates, so a path's names make no series.",
                [Ask(quantile(0.95, metrics.HTTP_SECONDS, "method", "route"), "{{method}} {{route}}")],
                unit="s",
                docs="resforgeapislow",
            )
        )
        .with_panel(
            graph(
                "Requests by status",
                metrics.HTTP_REQUESTS.help,
                [Ask(total(rate(metrics.HTTP_REQUESTS), "status"), "{{status}}")],
                unit="reqps",
                docs="resforgeapierrors",
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Server errors by route",
                "Share of a route's answers with a status of 500 and above.",
                [
                    Ask(
                        share(metrics.HTTP_REQUESTS, SERVER_ERROR, "method", "route", among=ASKED),
                        "{{method}} {{route}}",
                    )
                ],
                unit="percentunit",
                docs="resforgeapierrors",
                warn_at=0.05,
            )
        )
        .with_panel(
            graph(
                "Event streams",
                metrics.HTTP_STREAMS.help,
                [Ask(total(series(metrics.HTTP_STREAMS), "instance"), "{{instance}}")],
                unit="short",
                docs=DOCS,
                decimals=0,
            )
        )
        .with_panel(
            rows_of(
                "Versions that run",
                "During an upgrade there are two.",
                [("Processes", "short", f"count by (component, version) ({series(metrics.BUILD_INFO)})")],
                docs=DOCS,
                labels=("component", "version"),
                width=12,
                none="nothing is scraped",
            )
        )
        .with_row(row("Controller"))
        .with_panel(
            graph(
                "Lag",
                f"{metrics.CONTROLLER_TICK_AGE.help} When a controller dies, another follows within 10 s.",
                [Ask(tick_age, "lag")],
                unit="s",
                docs="resforgecontrollersilent",
                warn_at=60,
            )
        )
        .with_panel(
            graph(
                "Time of a tick",
                metrics.CONTROLLER_TICK_SECONDS.help,
                [
                    Ask(quantile(0.5, metrics.CONTROLLER_TICK_SECONDS), "median"),
                    Ask(quantile(0.99, metrics.CONTROLLER_TICK_SECONDS), "99 %"),
                ],
                unit="s",
                docs="resforgecontrollerslow",
                warn_at=5,
            )
        )
        .with_panel(
            graph(
                "Who acts",
                metrics.CONTROLLER_LEADER.help,
                [Ask(highest(series(metrics.CONTROLLER_LEADER), "instance"), "{{instance}}")],
                unit="short",
                docs="resforgenoleader",
                width=8,
                most=1,
                decimals=0,
            )
        )
        .with_panel(
            graph(
                "Actions",
                metrics.CONTROLLER_ACTIONS.help,
                [Ask(total(rate(metrics.CONTROLLER_ACTIONS), "action"), "{{action}}")],
                unit="ops",
                docs=DOCS,
                width=8,
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Errors that nobody foresaw",
                f"{metrics.CONTROLLER_ERRORS.help} The controller's log has each with its traceback.",
                [Ask(total(rate(metrics.CONTROLLER_ERRORS), "where"), "{{where}}")],
                unit="ops",
                docs="resforgecontrollererrors",
                width=8,
            )
        )
        .with_panel(
            graph(
                "Launcher, 95 %",
                metrics.LAUNCHER_SECONDS.help,
                [Ask(quantile(0.95, metrics.LAUNCHER_SECONDS, "operation"), "{{operation}}")],
                unit="s",
                docs="resforgelaunchererrors",
            )
        )
        .with_panel(
            graph(
                "Launcher's failures",
                "Share of calls that got no answer, were refused, or broke.",
                [Ask(share(metrics.LAUNCHER_SECONDS, BROKEN, "operation"), "{{operation}}")],
                unit="percentunit",
                docs="resforgelaunchererrors",
                most=1,
            )
        )
        .with_row(row("Object storage and database, as API and controller see them"))
        .with_panel(
            graph(
                "Storage, 95 %",
                metrics.S3_SECONDS.help,
                [Ask(quantile(0.95, metrics.S3_SECONDS, "operation"), "{{operation}}")],
                unit="s",
                docs="resforgestorageerrors",
            )
        )
        .with_panel(
            graph(
                "Storage operations by outcome",
                "`absent` is an answer: the controller asks for what may not be there yet.",
                [Ask(total(rate(metrics.S3_SECONDS), "operation", "outcome"), "{{operation}} {{outcome}}")],
                unit="ops",
                docs="resforgestorageerrors",
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Database, 95 %",
                metrics.DATABASE_SECONDS.help,
                [Ask(quantile(0.95, metrics.DATABASE_SECONDS, "kind"), "{{kind}}")],
                unit="s",
                docs="resforgedatabaseerrors",
            )
        )
        .with_panel(
            graph(
                "Transactions by outcome",
                metrics.DATABASE_SECONDS.help,
                [Ask(total(rate(metrics.DATABASE_SECONDS), "kind", "outcome"), "{{kind}} {{outcome}}")],
                unit="ops",
                docs="resforgedatabaseerrors",
                stacked=True,
            )
        )
    )
