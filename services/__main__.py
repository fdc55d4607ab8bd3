"""`python -m services`: what an operator does, and the two services themselves. Settings come from RESFORGE_*."""

import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Annotated, NoReturn, get_args

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from resforge.jobs import DatasetInfo
from resforge.spec import Name
from services.errors import ServiceError
from services.settings import Settings
from services.store import connect, migrate
from services.store.store import JobStore

# A project's name begins the keys of its objects, and is a Kubernetes label's value.
PROJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
FORMATS = get_args(DatasetInfo.model_fields["format"].annotation)
WITHOUT_LOCATION = ("digits", "synthetic")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
project_app = typer.Typer(no_args_is_help=True, help="Projects: each has keys and jobs of its own.")
keys_app = typer.Typer(no_args_is_help=True, help="API keys, each for one project.")
datasets_app = typer.Typer(no_args_is_help=True, help="The data sets that jobs may name.")
app.add_typer(project_app, name="project")
app.add_typer(keys_app, name="keys")
app.add_typer(datasets_app, name="datasets")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    try:
        app(prog_name="python -m services")
    except ServiceError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


@app.command("migrate")
def migrate_command() -> None:
    """Bring the database to this version's schema and register the built-in data sets. Harmless when it is there."""
    migrate(connect(_settings().database_url))


@project_app.command("create")
def create_project(name: Annotated[str, typer.Argument(help="Lower-case letters, digits and hyphens.")]) -> None:
    """Add a project."""
    if not PROJECT_NAME.fullmatch(name):
        _refuse(f"NAME: {name!r} is no project name; accepted are 1 to 63 lower-case letters, digits and inner hyphens")
    typer.echo(_store().create_project(name))


@keys_app.command("create")
def create_key(
    project: Annotated[str, typer.Argument(help="The project that the key is for.")],
    note: Annotated[str, typer.Option(help="Whose it is or what it is for.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make an API key and print it. It is shown this once; only its hash is kept."""
    key_id, key = _store().create_key(project, note)
    typer.echo(json.dumps({"id": key_id, "project": project, "key": key}) if as_json else key)


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The key's id: its part between rf_ and the next underscore.")],
) -> None:
    """End the use of an API key, at once and for good."""
    _store().revoke_key(key_id)


@datasets_app.command("add")
def add_dataset(
    name: Annotated[str, typer.Argument(help="The name that jobs give.")],
    format_: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")],
    channels: Annotated[int, typer.Option(help="1 for grey images, 3 for colour.")],
    classes: Annotated[int, typer.Option(help="How many classes it has.")],
    image_size: Annotated[int, typer.Option(help="Side of a square input, in pixels.")],
    location: Annotated[
        str | None, typer.Option(help="An absolute path on the workers, or an s3:// prefix that they can read.")
    ] = None,
    train_images: Annotated[int | None, typer.Option(help="How many training images it has.")] = None,
    test_images: Annotated[int | None, typer.Option(help="How many held-out images it has.")] = None,
    description: Annotated[str, typer.Option(help="A line for people.")] = "",
) -> None:
    """Register a data set, or replace the one of that name. Jobs that exist keep what they were submitted with."""
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        _refuse(f"NAME: {name!r}: {error.errors()[0]['msg']}")
    try:
        dataset = DatasetInfo.model_validate(
            {
                "name": name,
                "format": format_,
                "location": location,
                "channels": channels,
                "classes": classes,
                "image_size": image_size,
                "train_images": train_images,
                "test_images": test_images,
                "description": description,
            }
        )
    except ValidationError as error:
        _refuse(_problems(error, lambda field: f"--{field.replace('_', '-')}"))
    if dataset.format in WITHOUT_LOCATION and location is not None:
        _refuse(f"--location: the format {dataset.format} comes with the trainer and has none; leave it out")
    if dataset.format not in WITHOUT_LOCATION and not _is_location(location or ""):
        given = "none is given" if location is None else f"{location!r} is neither"
        _refuse(f"--location: the format {dataset.format} needs an absolute path or s3://bucket/prefix; {given}")
    _store().register_dataset(dataset)


@datasets_app.command("list")
def list_datasets(as_json: AsJson = False) -> None:
    """Print the registered data sets."""
    datasets = _store().datasets()
    if as_json:
        typer.echo(json.dumps([dataset.model_dump() for dataset in datasets], indent=2))
        return
    table = Table("name", "format", "input", "classes", "location", "project")
    for item in datasets:
        size = f"{item.image_size}x{item.image_size}x{item.channels}"
        table.add_row(
            item.name, item.format, size, str(item.classes), item.location or "-", item.project or "everybody's"
        )
    Console().print(table)


@app.command("api")
def run_api() -> None:
    """Serve the REST API until it is told to stop."""
    from services.api.app import create_app
    from services.api.server import Server

    settings = _settings()
    _log(settings)
    Server(create_app(settings), host=settings.host, port=settings.port).run()


@app.command("controller")
def run_controller() -> None:
    """Bring jobs to where they should be until it is told to stop. Several may run; one acts."""
    from services.controller.loop import run
    from services.controller.port import MetricsPortTaken

    settings = _settings()
    _log(settings)
    try:
        run(settings)
    except MetricsPortTaken as error:
        _refuse(f"RESFORGE_METRICS_PORT: {error}")


def _settings() -> Settings:
    try:
        return Settings()  # type: ignore[call-arg]  # the environment gives them
    except ValidationError as error:
        _refuse(_problems(error, lambda field: f"RESFORGE_{field.upper()}"))


def _store() -> JobStore:
    store = JobStore(connect(_settings().database_url))
    store.check()
    return store


def _log(settings: Settings) -> None:
    level, levels = settings.log_level.upper(), logging.getLevelNamesMapping()
    if level not in levels:
        _refuse(f"RESFORGE_LOG_LEVEL: {settings.log_level!r} is no level; accepted are {', '.join(levels)}")
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def _is_location(location: str) -> bool:
    if location.startswith("s3://"):
        return bool(location.removeprefix("s3://").partition("/")[0])
    return PurePosixPath(location).is_absolute()


def _problems(error: ValidationError, name: Callable[[str], str]) -> str:
    return "; ".join(
        f"{name(str(item['loc'][0]))}: {item['msg']}" if item["loc"] else item["msg"] for item in error.errors()
    )


def _refuse(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    main()
