"""What the client raises: one exception for each thing that a caller can act on."""

from resforge.resources import Problem
from resforge.spec import FieldProblem


class ResforgeError(Exception):
    """The base of what the client raises on purpose."""


class NotConnected(ResforgeError):
    """It is not known which API to talk to, or with what key."""


class ApiError(ResforgeError):
    """The API answered with an error. `problem` is what it said."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        lines = [problem.detail or problem.title]
        lines += [f"  {item.pointer or '/'}: {item.message}" for item in problem.errors]
        super().__init__("\n".join(lines))

    @property
    def errors(self) -> tuple[FieldProblem, ...]:
        """Every bad field, if fields were the trouble."""
        return self.problem.errors


class NotAuthenticated(ApiError):
    """The API key is absent, wrong or revoked."""


class NotFound(ApiError):
    """There is no such thing in this key's project."""


class Refused(ApiError):
    """What was sent is not acceptable; `errors` lists every bad field."""


class Conflict(ApiError):
    """The job's state does not allow this, or somebody else has changed the job."""


class Unavailable(ApiError):
    """The API, or something that it needs, does not answer now. Trying again may help."""


class DownloadFailed(ResforgeError):
    """A file of a checkpoint could not be fetched."""


class CorruptDownload(ResforgeError):
    """A fetched file is not what the manifest says. It was not kept."""

    def __init__(self, name: str, detail: str) -> None:
        self.name = name
        super().__init__(f"{name} is damaged: {detail}. It was not kept; try again, or pull another checkpoint")


class WaitTimeout(ResforgeError, TimeoutError):
    """The job has not ended in the time given."""


def api_error(problem: Problem) -> ApiError:
    """The exception for what the API said."""
    by_status: dict[int, type[ApiError]] = {
        400: Refused, 401: NotAuthenticated, 403: NotAuthenticated, 404: NotFound, 409: Conflict, 412: Conflict,
        413: Refused, 415: Refused, 422: Refused, 429: Unavailable, 502: Unavailable, 503: Unavailable,
        504: Unavailable,
    }  # fmt: skip
    return by_status.get(problem.status, ApiError)(problem)
