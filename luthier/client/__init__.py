"""A Python client of Luthier's HTTP interface: `Client().jobs.create(...)`, or `AsyncClient()` with await.

It covers what the stock `openai` package does for fine-tuning and what that package lacks: uploads and
downloads that go on where they broke, metrics, artifacts with their checksums, and `jobs.follow`. Both
clients have the same methods, written once. It needs httpx and pydantic alone.
"""

from typing import Generic, Self

from luthier.client.address import find_address
from luthier.client.calls import Runner
from luthier.client.connection import TIMEOUT_SECONDS, AsyncConnection, Connection
from luthier.client.errors import ApiError, SetupError, UnreachableError
from luthier.client.files import Files
from luthier.client.following import Update
from luthier.client.jobs import Jobs
from luthier.client.models import Models
from luthier.client.objects import (
    ApiKey,
    Artifact,
    AuditLog,
    Checkpoint,
    Estimate,
    Event,
    File,
    Job,
    Metrics,
    Model,
    Page,
    Preview,
    Project,
    Registration,
    Secret,
    Validation,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookTest,
    Worker,
)
from luthier.client.organization import ApiKeys, AuditLogs, Projects
from luthier.client.secrets import Secrets
from luthier.client.webhooks import Webhooks
from luthier.client.workers import Workers

__all__ = [
    "ApiError",
    "ApiKey",
    "Artifact",
    "AsyncClient",
    "AuditLog",
    "Checkpoint",
    "Client",
    "Estimate",
    "Event",
    "File",
    "Job",
    "Metrics",
    "Model",
    "Page",
    "Preview",
    "Project",
    "Registration",
    "Secret",
    "SetupError",
    "UnreachableError",
    "Update",
    "Validation",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WebhookTest",
    "Worker",
    "find_address",
]


class _Resources(Generic[Runner]):
    """What a client has, whichever way it runs."""

    def __init__(self, runner: Runner) -> None:
        self.files = Files(runner)
        self.jobs = Jobs(runner)
        self.models = Models(runner)
        self.projects = Projects(runner)
        self.api_keys = ApiKeys(runner)
        self.audit_logs = AuditLogs(runner)
        self.secrets = Secrets(runner)
        self.webhooks = Webhooks(runner)
        self.workers = Workers(runner)


class Client(_Resources[Connection]):
    """One server and one key; a context manager that closes its connections.

    Args:
        base_url: `http://host:port`, with or without `/v1`; default: LUTHIER_URL, else the profile's, else
            the address that `luthier up` left in the data folder.
        api_key: default: LUTHIER_API_KEY, else the profile's, which is for the profile's server alone.
        profile: of `luthier config`, which then goes before LUTHIER_URL and LUTHIER_API_KEY, as one does that
            LUTHIER_PROFILE names; default: the one in use.
        timeout_seconds: without a byte from the server.
        max_retries: of calls that may be repeated without harm.

    Raises:
        SetupError: there is no address or no key.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        profile: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        max_retries: int = 3,
    ) -> None:
        self.connection = Connection(
            base_url, api_key, profile=profile, timeout_seconds=timeout_seconds, max_retries=max_retries
        )
        super().__init__(self.connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        self.connection.close()


class AsyncClient(_Resources[AsyncConnection]):
    """The same on an event loop: methods are awaited, lists and streams are read with `async for`.

    Args and Raises: as `Client`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        profile: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        max_retries: int = 3,
    ) -> None:
        self.connection = AsyncConnection(
            base_url, api_key, profile=profile, timeout_seconds=timeout_seconds, max_retries=max_retries
        )
        super().__init__(self.connection)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.connection.close()
