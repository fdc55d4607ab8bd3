"""`resforge up`, `down` and `status`: the embedded stack, which runs as processes of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from resforge.cli.connect import named_home
from resforge.cli.exits import Exit, Failure
from resforge.cli.output import AsJson, ago, print_json, print_table

HomeOption = Annotated[
    Path | None, typer.Option(help="Where the stack keeps its state; left out: $RESFORGE_HOME or ~/.resforge.")
]


def up(
    context: typer.Context,
    detach: Annotated[bool, typer.Option("--detach", help="Return once it is up, and leave it running.")] = False,
    home: HomeOption = None,
    port: Annotated[int | None, typer.Option(help="The API's port; left out: the last one, or a free one.")] = None,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="What Ray may give to jobs; left out: this machine's, at least 2.")
    ] = None,
    s3_endpoint: Annotated[
        str | None, typer.Option(help="An S3 server that is there already; boto3's own chain finds its keys.")
    ] = None,
    bucket: Annotated[str | None, typer.Option(help="The bucket on it; without --s3-endpoint, one on AWS.")] = None,
) -> None:
    """Run the embedded stack: the API, the controller, a local Ray and an S3 server. Ctrl-C ends it all."""
    arguments = ["--detach"] if detach else []
    for name, value in (("port", port), ("cpus", cpus), ("s3-endpoint", s3_endpoint), ("bucket", bucket)):
        arguments += [] if value is None else [f"--{name}", str(value)]
    words = command("up", chosen_home(context, home), arguments)
    # The supervisor takes this process's place: signals reach it as they are, and its exit code is ours.
    os.execv(words[0], words)


def down(context: typer.Context, home: HomeOption = None) -> None:
    """End the embedded stack, and whatever a crash of it has left."""
    raise typer.Exit(subprocess.run(command("down", chosen_home(context, home)), check=False).returncode)


def status(context: typer.Context, home: HomeOption = None, as_json: AsJson = False) -> None:
    """Show how the parts of the embedded stack are. Leaves with 4 where it does not run."""
    found = ask_status(chosen_home(context, home))
    code = Exit.UNREACHABLE if found["state"] == "down" else Exit.OK
    if as_json:
        print_json(found)
        raise typer.Exit(code)
    if found["state"] == "down":
        typer.echo(f"no stack runs on {found['home']}")
        raise typer.Exit(code)
    from datetime import datetime

    since = f", started {ago(datetime.fromisoformat(found['since']))}" if found.get("since") else ""
    typer.echo(f"the stack at {found['home']} is {found['state']}{since} (process {found['pid']})")
    print_table(
        ("part", "state", ">process", ">restarts", "address", "message"),
        (
            (
                part["name"],
                part["state"],
                str(part["pid"] or "-"),
                str(part["restarts"]),
                part["address"] or "",
                part["message"],
            )
            for part in found["parts"]
        ),
        empty="its parts have not been started yet",
    )


def chosen_home(context: typer.Context, home: Path | None) -> Path:
    from resforge.connection import home_directory

    return home_directory(home or named_home(context)).resolve()


def ask_status(home: Path) -> dict[str, Any]:
    """How the stack is, as `python -m services.local status` says.

    Raises:
        Failure: it does not say.
    """
    answer = subprocess.run(command("status", home), check=False, capture_output=True, text=True)
    try:
        found = json.loads(answer.stdout)
    except ValueError:
        raise Failure(answer.stderr.strip().removeprefix("resforge: ") or "the status can't be read") from None
    return dict(found)


def command(name: str, home: Path, arguments: Sequence[str] = ()) -> list[str]:
    """The words that start a part of `services.local`.

    Raises:
        Failure: it is not installed; a client alone does not need it.
    """
    if importlib.util.find_spec("services") is None:
        raise Failure("the embedded stack is not installed: pip install 'resforge[local]'")
    return [sys.executable, "-m", "services.local", name, "--home", str(home), *arguments]
