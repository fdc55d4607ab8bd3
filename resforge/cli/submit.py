"""`resforge submit`: from a recipe, a file and single fields to a job."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resforge.cli.connect import client
from resforge.cli.exits import Exit, Failure
from resforge.cli.output import AsJson, note, print_json, print_table

if TYPE_CHECKING:
    from resforge.plan import Plan
    from resforge.spec import AnySpec


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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check a training and show what follows from it; submit nothing.")
    ] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Submitting again with the same key gives the same job.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job: a recipe, a file, or both, with single fields laid over them."""
    document = build(recipe=recipe, file=file, settings=settings or [], workers=workers, name=name, labels=label or [])
    spec = check(document)
    with client(context) as connected:
        if dry_run:
            planned = connected.plan(document)
            if as_json:
                print_json(planned)
            else:
                _show(planned)
            return
        if spec.kind == "train" and not as_json:
            planned = connected.plan(document)
            for line in (_summary(planned), *planned.notes):
                note(line)
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


def check(document: dict[str, Any]) -> "AnySpec":
    """Refuse here what the API would refuse, with every bad field at once.

    Raises:
        Failure: the document is no job.
    """
    from pydantic import ValidationError

    from resforge.recipes import UnknownRecipe, expand
    from resforge.spec import field_problems, parse_job

    try:
        return parse_job(expand(document))
    except UnknownRecipe as error:
        raise Failure(str(error), Exit.USAGE) from error
    except ValidationError as error:
        lines = ["this is no job that can run:"]
        for problem in field_problems(error):
            given = "" if problem.given is None else f" (given: {problem.given})"
            lines.append(f"  {problem.pointer or '/'}: {problem.message}{given}")
        raise Failure("\n".join(lines), Exit.USAGE) from error


def _summary(planned: "Plan") -> str:
    """The plan on one line."""
    workers = f"{planned.workers} worker{'s' if planned.workers > 1 else ''}"
    length = "" if planned.total_steps is None else f", {planned.total_steps:,} steps"
    epochs = "" if planned.epochs is None else f" ({planned.epochs:,.4g} epochs)"
    images = f"{planned.global_batch:,} images a step, {planned.images_per_worker:,} on each of {workers}"
    return f"{planned.model} on {planned.dataset}: {images}; learning rate {_rate(planned)}{length}{epochs}"


def _rate(planned: "Plan") -> str:
    scaled = planned.learning_rate_scaled
    told = f"{planned.learning_rate:.6g}" + ("" if scaled is None else f" ({scaled:g} times optim.lr)")
    return told + (f" after {planned.warmup_steps:,} steps of warm-up" if planned.warmup_steps else "")


def _show(planned: "Plan") -> None:
    def known(value: float | None, form: str = ",") -> str:
        return "not known: the data set's number of images is not" if value is None else format(value, form)

    print_table(
        ("what follows", ""),
        (
            ("model", f"{planned.model}, {planned.parameters:,} parameters"),
            ("data set", planned.dataset),
            ("training images", known(planned.train_images)),
            ("images a step", f"{planned.global_batch:,}"),
            ("workers", f"{planned.workers:,}"),
            ("images a worker", f"{planned.images_per_worker:,}"),
            ("learning rate", _rate(planned)),
            ("steps an epoch", known(planned.steps_per_epoch)),
            ("steps", known(planned.total_steps)),
            ("epochs", known(planned.epochs, ",.4g")),
            ("operations", known(planned.operations, ".3g")),
        ),
    )
    for line in planned.notes:
        note(line)
