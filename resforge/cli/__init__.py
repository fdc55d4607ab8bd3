"""The command line. `main` is the entry point `resforge`."""

import sys


def main() -> None:
    """Run the command line and leave with an exit code that scripts can use (see resforge.cli.exits)."""
    from resforge.cli.exits import Exit, explain

    try:
        from resforge.cli.app import app

        app()
    except KeyboardInterrupt:  # before typer could see it
        sys.exit(Exit.INTERRUPTED)
    except Exception as error:
        code = explain(error)
        if code is None:
            raise
        sys.exit(code)
