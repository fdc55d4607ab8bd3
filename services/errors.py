"""One exception for each thing that a caller can act on. services/api/problems.py maps them to HTTP."""


class ServiceError(Exception):
    """The base of what the services raise on purpose."""


class Unauthenticated(ServiceError):
    """No valid API key came with the request."""


class ProjectNotFound(ServiceError):
    """There is no such project, or the key is for another."""


class ProjectExists(ServiceError):
    """A project of that name exists already."""


class KeyNotFound(ServiceError):
    """There is no such API key."""


class JobNotFound(ServiceError):
    """There is no such job in this project."""


class DatasetNotFound(ServiceError):
    """No dataset of that name is registered."""


class DatasetNameTaken(ServiceError):
    """The name is that of a data set which this project has not ingested."""


class DatasetNotIngested(ServiceError):
    """The data set is the operator's, and a project removes only what it has ingested."""


class DatasetInUse(ServiceError):
    """Jobs that have not ended work on the data set."""


class DatasetsOverlap(ServiceError):
    """Another data set has objects in the same place."""


class CheckpointNotFound(ServiceError):
    """The job has no such checkpoint."""


class StudyNotFound(ServiceError):
    """There is no such study in this project."""


class ReportNotFound(ServiceError):
    """The job has left no report."""


class JobNotTerminal(ServiceError):
    """The job has not ended, and only ended jobs can be deleted."""


class StudyNotTerminal(ServiceError):
    """Some jobs of the study have not ended, and only ended studies can be deleted."""


class JobEnded(ServiceError):
    """The job has ended, and an ended job never changes."""


class GenerationMismatch(ServiceError):
    """The job was changed by somebody else since it was read."""


class IdempotencyConflict(ServiceError):
    """The Idempotency-Key was used before with another body."""


class InvalidCursor(ServiceError):
    """The cursor is not one that this API gave."""


class Stale(ServiceError):
    """A compare-and-set found that the job had changed. Read it again."""


class Fenced(ServiceError):
    """The lease is no longer held; another controller acts."""


class IllegalTransition(ServiceError):
    """The state machine has no such transition."""


class StoreUnavailable(ServiceError):
    """The database does not answer, or refuses to."""


class SchemaNotCurrent(ServiceError):
    """The database's schema is not the one that this version works with."""


class InvalidDatabaseUrl(ServiceError):
    """The URL is for no database that the store knows."""


class InvalidPools(ServiceError):
    """The pools file can't be used."""
