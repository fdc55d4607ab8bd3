"""`python -m services.local up|down|status`: the embedded stack. `resforge up` and its like start this."""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from services.local.home import AlreadyRunning, Home, HomeError
from services.local.ports import PortTaken
from services.local.stack import PREFIX

OK, FAILED, NOT_RUNNING, RUNS_ALREADY = 0, 1, 4, 5


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--home", type=Path, required=True, help="the folder that holds the stack's state")
        return added

    up = command("up", "run the stack until a signal ends it")
    up.add_argument("--port", type=int, help="the API's port; left out: the one used last, or a free one")
    up.add_argument("--cpus", type=int, help="what Ray may give to jobs; left out: this machine's, and at least two")
    up.add_argument("--s3-endpoint", help="URL of an S3 server that is there already; keys come by boto3's own chain")
    up.add_argument("--bucket", help="bucket on it (resforge); without --s3-endpoint: on AWS")
    up.add_argument("--detach", action="store_true", help="return when the stack is up, and leave it running")
    up.add_argument("--follow-stdin", action="store_true", help="end when standard input ends")
    up.add_argument("--quiet-once-up", action="store_true", help="let go of standard output once the stack is up")
    command("down", "end the stack and whatever an earlier run has left")
    command("status", "print how the stack is, as JSON")
    prepare = command("prepare", "migrate the database; make project, key, datasets and bucket (part of `up`)")
    prepare.add_argument("--database-url", required=True)
    prepare.add_argument("--s3-endpoint")
    prepare.add_argument("--bucket", required=True)
    prepare.add_argument("--external-s3", action="store_true")
    return parser


def _up(home: Home, args: argparse.Namespace) -> int:
    from services.local import lifecycle

    if args.cpus is not None and args.cpus < 1:
        raise HomeError("--cpus must be at least 1")
    if args.detach:
        return lifecycle.detach(home, [word for word in sys.argv[2:] if word != "--detach"])
    # For people; the file below the home has the times.
    logging.raiseExceptions = False  # the terminal may go away before the stack does
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("resforge.local")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    options = lifecycle.Options(port=args.port, cpus=args.cpus, s3_endpoint=args.s3_endpoint, bucket=args.bucket)
    lifecycle.up(home, options, os.environ, follow_stdin=args.follow_stdin, quiet_once_up=args.quiet_once_up)
    return OK


def _run(args: argparse.Namespace) -> int:
    home = Home(args.home.expanduser().resolve())
    if args.command == "up":
        return _up(home, args)
    if args.command == "prepare":
        from services.local.prepare import prepare

        prepare(
            home,
            database_url=args.database_url,
            bucket=args.bucket,
            endpoint=args.s3_endpoint,
            external_s3=args.external_s3,
        )
        return OK
    from services.local import lifecycle

    if args.command == "down":
        sys.stdout.write(lifecycle.down(home) + "\n")
        return OK
    document = lifecycle.status(home)
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
    return NOT_RUNNING if document["state"] == "down" else OK


def main() -> int:
    args = _parser().parse_args()
    from services.local.supervisor import StartFailed

    try:
        return _run(args)
    except AlreadyRunning as error:
        code, message = RUNS_ALREADY, str(error)
    except (HomeError, PortTaken, StartFailed, TimeoutError) as error:
        code, message = FAILED, str(error)
    except OSError as error:
        code, message = FAILED, f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    except KeyboardInterrupt:
        return 130
    sys.stderr.write(f"{PREFIX}{message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
