"""Bodies of the calls that change a job or try it again."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from luthier.spec import MetadataKey, MetadataValue, Request

JobName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]{0,127}$")]
Place = Annotated[str, StringConstraints(pattern=r"^(front|back|ftjob-[\w-]{1,57})$")]


class RetryRequest(Request):
    """Where the new job starts: from the newest checkpoint (the default), or all over."""

    from_: Literal["checkpoint", "start"] = Field(default="checkpoint", alias="from")


class JobPatch(Request):
    """What is to change; what is left out stays.

    Attributes:
        place: within the priority: `front`, `back`, or the id of the job to stand before.
        name, metadata: null takes them away.
    """

    priority: Annotated[int, Field(ge=-100, le=100)] | None = None
    place: Place | None = None
    name: JobName | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> "JobPatch":
        if not self.model_fields_set:
            raise ValueError("the body changes nothing: give priority, place, name or metadata")
        return self
