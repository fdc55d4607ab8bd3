"""What every part of a spec shares: it is frozen, refuses unknown fields, names are of one form, and documents are laid
over each other."""

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9._/]{0,61}[a-z0-9])?$")]
LabelKey = Annotated[str, StringConstraints(pattern=r"^[a-z0-9A-Z]([-a-zA-Z0-9._/]{0,61}[a-zA-Z0-9])?$")]
LabelValue = Annotated[str, StringConstraints(max_length=63)]


class Part(BaseModel):
    """A frozen part of a spec that refuses unknown fields, infinities and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Python's True is a 1 and YAML's `on` is True, so `epochs: on` would train for one epoch.
        if isinstance(value, bool) and info.field_name:
            accepted = cls.model_fields[info.field_name].annotation
            if {int, float} & {accepted, *get_args(accepted)}:
                raise PydanticCustomError("number", "expected a number, not true or false")
        return value


def laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A document with another's fields in place of its own. Mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = laid_over(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged
