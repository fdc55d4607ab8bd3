"""What a recipe is."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from resforge.spec import EvaluationSpec, ModelSpec, TrainSpec


class Published(BaseModel):
    """An error rate in percent and where it was published."""

    model_config = ConfigDict(frozen=True)

    error: float | None = Field(description="Test or validation error, in percent; null where only a bound is known.")
    metric: str
    source: str
    note: str = ""

    def __str__(self) -> str:
        """Such as 6.43 %, 3.57 % (top-5), or more than 60 %."""
        rank = " (top-5)" if "top-5" in self.metric else ""
        return self.note if self.error is None else f"{self.error:.2f} %{rank}"


class Recipe(BaseModel):
    """A complete training job under a name, or an evaluation that is complete but for its checkpoints."""

    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    spec: TrainSpec | EvaluationSpec
    published: tuple[Published, ...] = Field(
        default=(), description="The errors published for it, the one that a training reports or is known by first."
    )

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields that a document must give beside the recipe's name."""
        return () if isinstance(self.spec, TrainSpec) else ("checkpoints",)


def model_of(family: str, depth: int, **fields: Any) -> ModelSpec:
    """A network by its choices; what is left out has its default."""
    return ModelSpec.model_validate({"family": family, "depth": depth, **fields})
