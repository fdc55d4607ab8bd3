"""Readings of a trained network: each module measures one thing and draws it, and says in its docstring what, in which
units, after whom, and where it misleads."""

from collections.abc import Mapping
from typing import Any

from resforge.spec.readings import READINGS, Reading
from trainer.analysis import gradients, landscape, lesions, ode, paths, responses, smoothing, travel
from trainer.analysis.subject import Outcome, Progress, Spread, Subject, here

_MODULES: Mapping[str, Any] = {
    "responses": responses,
    "gradients": gradients,
    "travel": travel,
    "lesions": lesions,
    "paths": paths,
    "landscape": landscape,
    "ode": ode,
    "smoothing": smoothing,
}
SOURCES: Mapping[str, str] = {
    "responses": "He et al. 2015, figure 7",
    "gradients": "He et al. 2016, section 2",
    "travel": "after He et al. 2015, section 1",
    "lesions": "Veit et al. 2016, section 4",
    "paths": "Veit et al. 2016, section 5",
    "landscape": "Li et al. 2018, section 4",
    "ode": "Chang et al. 2018, section 3",
    "smoothing": "Santurkar et al. 2018, section 3",
}
assert set(_MODULES) == set(SOURCES) == set(READINGS)


def read(reading: Reading, subject: Subject, *, progress: Progress, spread: Spread = here) -> Outcome:
    """Take a reading. The subject's network is left as it is.

    Args:
        reading: which, and its parameters.
        subject: the network and the images to show it.
        progress: told how far it has come.
        spread: where pieces of a landscape are computed.

    Raises:
        Unreadable: the reading can't be taken of this network; the message says what would be accepted.
    """
    outcome: Outcome = _MODULES[reading.name].read(reading, subject, progress, spread)
    return outcome
