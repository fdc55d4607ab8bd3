"""Studies: named groups of jobs that answer one question, with one report."""

from resforge.studies.benches import SETTINGS
from resforge.studies.catalog import STUDIES, Member, StudySpec, expand, settings_of
from resforge.studies.gather import gather, load
from resforge.studies.report import StudyDocument, StudyMember, StudyReport

__all__ = [
    "SETTINGS", "STUDIES", "Member", "StudyDocument", "StudyMember", "StudyReport", "StudySpec", "expand", "gather",
    "load", "settings_of",
]  # fmt: skip
