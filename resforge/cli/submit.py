"""`resforge submit`: from a recipe, a file and single fields to a job."""

from pathlib import Path
from typing import Annotated, Any

import typer

from resforge.cli.connect import client
from resforge.cli.exits import Exit, Failure
from resforge.cli.output import AsJson, note, print_json


def submit(
    context: typer.Context,
    recipe: Annotated[str | None, typer.Option(help="Start from this recipe (`resforge recipes`).")] = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="A job in JSON or YAML; laid over the recipe, if there is one.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="One field, such as optim.lr=0.05. The value is YAML."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Short for --set scaling.workers=N.")] = None,
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label to find the job by.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show its progress until it ends.")] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Submitting again with the same key gives the same job.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job: a recipe, a file, or both, with single fields laid over them."""
    document = build(recipe=recipe, file=file, settings=settings or [], workers=workers, name=name, labels=label or [])
    check(document)
    with client(context) as connected:
        job = connected.submit(document, idempotency_key=idempotency_key)
        if watch:
            from resforge.cli.watch import show

            if not as_json:
                note(f"job {job.id}")
            raise typer.Exit(show(connected, job.id, as_json=as_json))
    if as_json:
        print_json(job)
    else:
        typer.echo(f"job {job.id} is {job.state}; `resforge watch {job.id}` shows its progress")


def build(
    *,
    recipe: str | None,
    file: Path | None,
    settings: list[str],
    workers: int | None,
    name: str | None,
    labels: list[str],
) -> dict[str, Any]:
    """The document to post: the file's, the recipe's name, and single fields over both.

    Raises:
        Failure: the file can't be read, or an option is not FIELD=VALUE.
    """
    from resforge.spec import SpecFileError, read_document

    if recipe is None and file is None:
        raise Failure("give --recipe NAME or --file FILE; `resforge recipes` lists the recipes", Exit.USAGE)
    try:
        document = read_document(file) if file else {}
    except SpecFileError as error:
        raise Failure(str(error), Exit.USAGE) from error
    if recipe is not None:
        document["recipe"] = recipe
    for option in settings:
        lay_over(document, option)
    if workers is not None:
        lay_over(document, f"scaling.workers={workers}")
    if name is not None:
        document["name"] = name
    for option in labels:
        key, separator, value = option.partition("=")
        if not separator:
            raise Failure(f"--label {option}: expected KEY=VALUE", Exit.USAGE)
        given = document.setdefault("labels", {})
        if not isinstance(given, dict):
            raise Failure(f"--label {option}: labels in {file} is no mapping", Exit.USAGE)
        given[key] = value
    return document


def lay_over(document: dict[str, Any], option: str) -> None:
    """Lay `a.b=value` over a document, making mappings on the way."""
    import yaml

    path, separator, text = option.partition("=")
    if not separator or not path:
        raise Failure(f"--set {option}: expected FIELD=VALUE, such as optim.lr=0.05", Exit.USAGE)
    try:
        value = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # a date that is none is a ValueError
        raise Failure(f"--set {option}: the value is no YAML: {' '.join(str(error).split())}", Exit.USAGE) from error
    *parents, last = path.split(".")
    place = document
    for name in parents:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise Failure(f"--set {option}: {name} is a single value and has no fields", Exit.USAGE)
    place[last] = value


def check(document: dict[str, Any]) -> None:
    """Refuse here what the API would refuse, with every bad field at once.

    Raises:
        Failure: the document is no job.
    """
    from pydantic import ValidationError

    from resforge.recipes import UnknownRecipe, expand
    from resforge.spec import field_problems, parse_job

    try:
        parse_job(expand(document))
    except UnknownRecipe as error:
        raise Failure(str(error), Exit.USAGE) from error
    except ValidationError as error:
        lines = ["this is no job that can run:"]
        for problem in field_problems(error):
            given = "" if problem.given is None else f" (given: {problem.given})"
            lines.append(f"  {problem.pointer or '/'}: {problem.message}{given}")
        raise Failure("\n".join(lines), Exit.USAGE) from error
