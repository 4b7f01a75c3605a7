"""Bodies of the calls that make and change projects, keys and secrets."""

from typing import Annotated, Literal, TypeVar

from pydantic import Field, StringConstraints, field_validator, model_validator

from luthier.keys import MAX_GRACE_HOURS
from luthier.spec import Request

Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
SecretName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
SecretValue = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[\x21-\x7e]+$")]
ProjectScopes = Annotated[list[Literal["read", "write"]], Field(min_length=1, max_length=2)]
AdminScopes = Annotated[list[Literal["read", "write", "admin"]], Field(min_length=1, max_length=3)]
# OpenAI's field; ten years at most.
Lifetime = Annotated[int, Field(ge=60, le=10 * 365 * 86400)]
RequestsPerMinute = Annotated[int, Field(ge=0, le=1_000_000)]
_Count = Annotated[int, Field(ge=0, le=2**53)]
T = TypeVar("T")


def _given(value: T | None) -> T:
    """The value of a field that may be left out, but not be taken away."""
    if value is None:
        raise ValueError("must not be null: leave it out where it is to stay")
    return value


class QuotasBody(Request):
    """Limits of a project in the place of the settings'; null is no limit, and what is left out is theirs."""

    queued_jobs: _Count | None = None
    running_jobs: _Count | None = None
    storage_bytes: _Count | None = None


class CreateProjectRequest(Request):
    """A new project."""

    name: Name
    quotas: QuotasBody | None = None


class UpdateProjectRequest(Request):
    """What is to change of a project; what is left out stays. `quotas` is replaced as a whole."""

    name: Name | None = None
    quotas: QuotasBody | None = None

    _refuse_null = field_validator("name")(_given)

    @model_validator(mode="after")
    def _changes_something(self) -> "UpdateProjectRequest":
        if not self.model_fields_set:
            raise ValueError("the body changes nothing: give name or quotas")
        return self


class CreateApiKeyRequest(Request):
    """A new key of a project.

    Attributes:
        expires_in_seconds: left out, it does not expire.
        requests_per_minute: in the place of the setting; 0 is no limit.
    """

    name: Name
    scopes: ProjectScopes = Field(default=["read", "write"])
    expires_in_seconds: Lifetime | None = None
    requests_per_minute: RequestsPerMinute | None = None


class UpdateApiKeyRequest(Request):
    """What is to change of a key; what is left out stays.

    Attributes:
        expires_in_seconds: from now on; null for no end.
    """

    name: Name | None = None
    scopes: ProjectScopes | None = None
    expires_in_seconds: Lifetime | None = None
    requests_per_minute: RequestsPerMinute | None = None

    _refuse_null = field_validator("name", "scopes")(_given)

    @model_validator(mode="after")
    def _changes_something(self) -> "UpdateApiKeyRequest":
        if not self.model_fields_set:
            raise ValueError(
                "the body changes nothing: give name, scopes, expires_in_seconds or requests_per_minute"
            )
        return self


class CreateAdminApiKeyRequest(Request):
    """A new key of the organisation; its scopes hold `admin`."""

    name: Name
    scopes: AdminScopes = Field(default=["read", "write", "admin"])
    expires_in_seconds: Lifetime | None = None
    requests_per_minute: RequestsPerMinute | None = None

    @model_validator(mode="after")
    def _is_an_admins(self) -> "CreateAdminApiKeyRequest":
        if "admin" not in self.scopes:
            raise ValueError("scopes must hold admin; make other keys in a project")
        return self


class RotateApiKeyRequest(Request):
    """How long the old key stays good beside the new one; 0 ends it at once."""

    grace_hours: Annotated[float, Field(ge=0, le=MAX_GRACE_HOURS)] = 24


class PutSecretRequest(Request):
    """A secret, which is never shown again. One of that name is replaced."""

    name: SecretName
    value: SecretValue
