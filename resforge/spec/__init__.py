"""The contract: what a job is asked to be.

A spec is a frozen, complete value. All that can be told to be wrong from the spec alone is refused here and nowhere
else; what only the operator knows (which datasets exist) is checked by the API.
"""

from resforge.spec.base import LabelKey, LabelValue, Name, Part
from resforge.spec.data import AugmentSpec, DataSpec
from resforge.spec.files import SpecFileError, read_document
from resforge.spec.jobs import (
    JOB_SPEC,
    SPECS,
    AnalyseSpec,
    AnySpec,
    CheckpointRef,
    CommonSpec,
    EvalDataSpec,
    EvaluateSpec,
    EvaluationSpec,
    IngestSpec,
    InitSpec,
    JobId,
    JobSpec,
    ProtocolSpec,
    TrainSpec,
    parse_job,
)
from resforge.spec.model import ModelSpec
from resforge.spec.problems import MOST_PROBLEMS, FieldProblem, field_problems
from resforge.spec.readings import READINGS, Reading
from resforge.spec.training import (
    CheckpointSpec,
    OptimSpec,
    RegularisationSpec,
    RetrySpec,
    ScalingSpec,
    ScheduleSpec,
    TrainingSpec,
)

__all__ = [
    "JOB_SPEC", "MOST_PROBLEMS", "READINGS", "SPECS", "AnalyseSpec", "AnySpec", "AugmentSpec", "CheckpointRef",
    "CheckpointSpec", "CommonSpec", "DataSpec", "EvalDataSpec", "EvaluateSpec", "EvaluationSpec", "FieldProblem",
    "IngestSpec", "InitSpec", "JobId", "JobSpec", "LabelKey", "LabelValue", "ModelSpec", "Name", "OptimSpec", "Part",
    "ProtocolSpec", "Reading", "RegularisationSpec", "RetrySpec", "ScalingSpec", "ScheduleSpec", "SpecFileError",
    "TrainSpec", "TrainingSpec", "field_problems", "parse_job", "read_document",
]  # fmt: skip
