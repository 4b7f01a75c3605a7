"""The two kinds of models of the specs: what users write, and what the service writes."""

from pydantic import BaseModel, ConfigDict


class Request(BaseModel):
    """What users write: exact types, finite numbers, no unknown names."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Frozen(BaseModel):
    """What the service writes and reads back."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def field_path(loc: tuple[int | str, ...]) -> str:
    """The dotted name of a field from pydantic's `loc`, without the tags of unions."""
    return ".".join(str(part) for part in loc if not (isinstance(part, str) and part.startswith("<")))
