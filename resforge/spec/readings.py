"""What can be read of a trained network. Each reading's page in trainer/analysis says what it measures."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from resforge.spec.base import Part


class ResponsesReading(Part):
    """Standard deviations of layer responses (He et al. 2015, figure 7)."""

    name: Literal["responses"] = "responses"


class GradientsReading(Part):
    """Gradient norms by block, and the part that comes through the shortcut (He et al. 2016, section 2)."""

    name: Literal["gradients"] = "gradients"


class TravelReading(Part):
    """How far each layer's weights have moved from initialisation."""

    name: Literal["travel"] = "travel"


class LesionsReading(Part):
    """Error after blocks are deleted or permuted (Veit et al. 2016, section 4)."""

    name: Literal["lesions"] = "lesions"


class PathsReading(Part):
    """Path lengths and their share of the gradient (Veit et al. 2016, section 5)."""

    name: Literal["paths"] = "paths"


class LandscapeReading(Part):
    """A filter-normalised two-dimensional loss landscape (Li et al. 2018)."""

    name: Literal["landscape"] = "landscape"


class OdeReading(Part):
    """Error when each step of the network is halved and doubled, as of an ODE solver."""

    name: Literal["ode"] = "ode"


class SmoothingReading(Part):
    """The loss's range along the gradient with and without batch normalisation (Santurkar et al. 2018)."""

    name: Literal["smoothing"] = "smoothing"


def _name(reading: Any) -> Any:
    return reading.get("name") if isinstance(reading, dict) else getattr(reading, "name", None)


Reading = Annotated[
    Annotated[ResponsesReading, Tag("responses")]
    | Annotated[GradientsReading, Tag("gradients")]
    | Annotated[TravelReading, Tag("travel")]
    | Annotated[LesionsReading, Tag("lesions")]
    | Annotated[PathsReading, Tag("paths")]
    | Annotated[LandscapeReading, Tag("landscape")]
    | Annotated[OdeReading, Tag("ode")]
    | Annotated[SmoothingReading, Tag("smoothing")],
    Discriminator(_name),  # not the field's name, which pydantic refuses beside Part's validator
]
READINGS = ("responses", "gradients", "travel", "lesions", "paths", "landscape", "ode", "smoothing")
