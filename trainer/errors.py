"""What can go wrong that a job's state must name. Each class's docstring is its message."""

from resforge.jobs import Reason


class TrainingFault(Exception):
    """The base. `reason` is what the job's state will say.

    `agreed` tells that every rank raises it at the same step, so that each may simply end; a fault of one rank alone
    must bring its peers down, which wait for it in a collective operation.
    """

    reason = Reason.TRAINING_ERROR
    agreed = False


class InvalidData(TrainingFault):
    """The data set is not what its registration says: {detail}"""

    reason = Reason.INVALID_DATA


class SourceUnavailable(TrainingFault):
    """A checkpoint of another job that this one needs is absent or damaged: {detail}"""

    reason = Reason.SOURCE_UNAVAILABLE


class CannotCompile(TrainingFault):
    """The host can't compile the step, and the spec asks for it: {detail}"""


class Unreadable(TrainingFault):
    """The reading can't be taken of this network: {detail}"""

    reason = Reason.UNREADABLE


class OutOfMemory(TrainingFault):
    """The device's memory does not suffice."""

    reason = Reason.OUT_OF_MEMORY


class CheckpointUploadFailed(TrainingFault):
    """The last checkpoint could not be written: {detail}"""

    reason = Reason.CHECKPOINT_UPLOAD_FAILED


class NonFiniteLoss(TrainingFault):
    """The loss or a weight became NaN or infinite."""

    reason = Reason.NON_FINITE_LOSS
    agreed = True

    def __init__(self, *, step: int, lr: float) -> None:
        super().__init__(
            f"the loss or a weight became NaN or infinite by step {step}, at a learning rate of {lr:g}; "
            f"the last good checkpoint is kept. A lower optim.lr or a longer warm-up (optim.schedule) may help"
        )
