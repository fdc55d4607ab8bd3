"""What can be read of a trained network. Each reading's module in trainer/analysis says what it measures."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator
from pydantic_core import PydanticCustomError

from resforge.spec.base import Part


class ResponsesReading(Part):
    """Standard deviations of layer responses (He et al. 2015, figure 7)."""

    name: Literal["responses"] = "responses"


class GradientsReading(Part):
    """Gradient norms by block, and the part that comes through the shortcut (He et al. 2016, section 2)."""

    name: Literal["gradients"] = "gradients"
    batch: int = Field(default=128, ge=2, le=65_536, description="Images whose mean loss is differentiated.")


class TravelReading(Part):
    """How far each layer's weights have moved from initialisation."""

    name: Literal["travel"] = "travel"


class LesionsReading(Part):
    """Error after blocks are deleted (Veit et al. 2016, section 4)."""

    name: Literal["lesions"] = "lesions"
    blocks: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Delete these one by one, such as layer1.1. Left out: every block that can be.",
    )
    most: int = Field(default=5, ge=0, le=1000, description="Delete up to so many blocks at once, drawn at random.")
    draws: int = Field(default=3, ge=1, le=100, description="Draws for each number of deleted or permuted blocks.")
    swaps: int = Field(default=5, ge=0, le=1000, description="Swap up to so many pairs of blocks of one shape.")


class PathsReading(Part):
    """Path lengths, and their share of the gradient (Veit et al. 2016, section 5)."""

    name: Literal["paths"] = "paths"
    batch: int = Field(default=32, ge=2, le=65_536, description="Images whose mean loss is differentiated.")
    draws: int = Field(default=8, ge=1, le=1000, description="Paths drawn of each length.")


class LandscapeReading(Part):
    """A filter-normalised two-dimensional loss landscape (Li et al. 2018)."""

    name: Literal["landscape"] = "landscape"
    points: int = Field(default=21, ge=3, le=401, description="Points along each of the two directions; odd.")
    span: float = Field(default=1.0, gt=0, le=100, description="From -span to span, in units of the filters' norms.")

    @field_validator("points")
    @classmethod
    def _the_network_in_the_middle(cls, points: int) -> int:
        if points % 2 == 0:
            raise PydanticCustomError("points", "expected an odd number, so that the network itself is in the middle")
        return points


class OdeReading(Part):
    """Blocks as steps of Euler's method, halved and doubled (Chang et al. 2018)."""

    name: Literal["ode"] = "ode"
    levels: int = Field(default=2, ge=1, le=6, description="Halve, and double, so many times.")


class SmoothingReading(Part):
    """The loss's range along the gradient, with and without batch normalisation (Santurkar et al. 2018)."""

    name: Literal["smoothing"] = "smoothing"
    batch: int = Field(default=128, ge=2, le=65_536, description="Images in a batch.")
    batches: int = Field(default=4, ge=1, le=100, description="Batches to average over.")
    largest_step: float = Field(default=0.4, gt=0, le=100, description="The longest step along the gradient.")
    steps: int = Field(default=9, ge=2, le=100, description="Lengths of steps, from 0 to the longest.")


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
