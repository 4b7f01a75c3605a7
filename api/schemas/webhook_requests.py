"""Bodies of the calls about webhook endpoints, as OpenAI's client sends them."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from luthier.addresses import MAX_URL_LENGTH
from luthier.spec import Request
from luthier.webhooks import EVENT_TYPES

EndpointName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Url = Annotated[str, StringConstraints(min_length=1, max_length=MAX_URL_LENGTH)]


def _known(event_type: str) -> str:
    if event_type not in EVENT_TYPES:
        raise ValueError(f"this is not an event that can be told; those are {', '.join(EVENT_TYPES)}")
    return event_type


EventTypeName = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": list(EVENT_TYPES)})]
EventTypeNames = Annotated[Sequence[EventTypeName], Field(min_length=1, max_length=len(EVENT_TYPES))]


class WebhookRequest(Request):
    """Who is told, and of what."""

    name: EndpointName
    url: Url
    event_types: EventTypeNames


class WebhookPatch(Request):
    """What is to change; what is left out stays.

    Attributes:
        event_types: all of them, not those to add.
        status: `enabled` again after a target answered 410, or after it was `disabled` here.
    """

    name: EndpointName | None = None
    url: Url | None = None
    event_types: EventTypeNames | None = None
    status: Literal["enabled", "disabled"] | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> "WebhookPatch":
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError("the body changes nothing: give name, url, event_types or status")
        return self


class RotateSecretRequest(Request):
    """Whether the secret of now signs, too, for 24 hours from now on."""

    keep_old_secret_active_for_24_hours: bool = False


class WebhookTestRequest(Request):
    """Which event is sent as a sample."""

    event_type: EventTypeName
