"""Commands on what there is to train: recipes, models and data sets."""

from typing import Annotated

import typer

from resforge.cli.connect import client
from resforge.cli.output import AsJson, print_json, print_table


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this one whole, as YAML.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes, or show one whole. They come with this program, so no service is needed."""
    from resforge.recipes import UnknownRecipe, all_recipes, get

    if name is None:
        found = list(all_recipes().values())
        if as_json:
            print_json(found)
            return
        print_table(
            ("recipe", ">published error", "what it is"),
            ((item.name, str(item.published[0]) if item.published else "-", item.title) for item in found),
        )
        return
    from resforge.cli.exits import Exit, Failure

    try:
        recipe = get(name)
    except UnknownRecipe as error:
        raise Failure(str(error), Exit.NOT_FOUND) from error
    if as_json:
        print_json(recipe)
        return
    import yaml

    typer.echo(f"# {recipe.title}")
    for published in recipe.published:
        note = f"; {published.note}" if published.note and published.error is not None else ""
        typer.echo(f"# published: {published.metric}: {published} ({published.source}{note})")
    for field in recipe.needs:
        typer.echo(f"# to be given beside this: {field}")
    typer.echo(yaml.safe_dump(recipe.spec.model_dump(mode="json"), sort_keys=False).rstrip())


def models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the networks with their parameters and multiply-adds."""
    with client(context) as connected:
        found = connected.models()
    if as_json:
        print_json(found)
        return
    print_table(
        ("model", ">parameters", ">multiply-adds", "counted at"),
        (
            (
                item.name,
                f"{item.parameters:,}",
                f"{item.macs:,}",
                f"{item.input.image_size}x{item.input.image_size}x{item.input.channels}, {item.input.classes} classes",
            )
            for item in found
        ),
    )


def datasets(context: typer.Context, as_json: AsJson = False) -> None:
    """List the data sets that jobs can name."""
    with client(context) as connected:
        found = connected.datasets()
    if as_json:
        print_json(found)
        return
    print_table(
        ("dataset", "format", "images", ">training", ">test", ">classes", "description"),
        (
            (
                item.name,
                item.format,
                f"{item.image_size}x{item.image_size}x{item.channels}",
                "-" if item.train_images is None else f"{item.train_images:,}",
                "-" if item.test_images is None else f"{item.test_images:,}",
                str(item.classes),
                item.description,
            )
            for item in found
        ),
        empty="no datasets are registered",
    )
