"""Exit codes, and what of an error a person gets to read."""

import sys
from enum import IntEnum

HELP = (
    "Exit codes: 0 done; 1 the job that was watched did not succeed, or something else went wrong; 2 wrong usage, or "
    "input that was refused; 3 not found; 4 the service is not reachable; 5 the state of things does not allow it; "
    "6 the API key is not accepted; 7 what was downloaded is damaged; 130 interrupted."
)


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    CONFLICT = 5
    NOT_AUTHENTICATED = 6
    DAMAGED = 7
    INTERRUPTED = 130


class Failure(Exception):
    """A command can't go on. The message is for people; `code` is what the program leaves with."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code


def explain(error: Exception) -> Exit | None:
    """Write an error that we know to standard error and give its exit code; None for one that is a mistake of ours."""
    code = _code(error)
    if code is not None:
        sys.stderr.write(f"resforge: {error}\n")
    return code


def _code(error: Exception) -> Exit | None:
    if isinstance(error, Failure):
        return error.code
    from resforge import errors

    if isinstance(error, OSError) and not isinstance(error, errors.ResforgeError):
        return Exit.FAILED  # a folder that can't be written to, a full disk
    table = {
        errors.NotConnected: Exit.UNREACHABLE,
        errors.Unavailable: Exit.UNREACHABLE,
        errors.NotAuthenticated: Exit.NOT_AUTHENTICATED,
        errors.NotFound: Exit.NOT_FOUND,
        errors.Refused: Exit.USAGE,
        errors.Conflict: Exit.CONFLICT,
        errors.CorruptDownload: Exit.DAMAGED,
        errors.ResforgeError: Exit.FAILED,
    }
    return next((code for kind, code in table.items() if isinstance(error, kind)), None)
