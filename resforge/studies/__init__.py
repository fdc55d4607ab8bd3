"""Studies: named groups of jobs that answer one question, with one report."""

from resforge.studies.catalog import SETTINGS, STUDIES, Member, StudySpec, expand

__all__ = ["SETTINGS", "STUDIES", "Member", "StudySpec", "expand"]
