"""A Python client of Luthier's HTTP interface: `Client().jobs.create(...)`.

It covers what the stock `openai` package does for fine-tuning and what that package lacks: uploads with
progress, metrics, artifacts with their checksums, and `jobs.follow`. It needs httpx and pydantic alone.
"""

from luthier.client.connection import ApiError, Connection, find_address
from luthier.client.files import Files
from luthier.client.jobs import Jobs, Update
from luthier.client.models import Models
from luthier.client.objects import (
    Artifact,
    Checkpoint,
    Estimate,
    Event,
    File,
    Job,
    Metrics,
    Model,
    Page,
    Preview,
    Registration,
    Validation,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookTest,
)
from luthier.client.webhooks import Webhooks

__all__ = [
    "ApiError",
    "Artifact",
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
    "Registration",
    "Update",
    "Validation",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WebhookTest",
    "find_address",
]


class Client:
    """One server and one key; a context manager that closes its connections.

    Args:
        base_url: `http://host:port`, with or without `/v1`; default: LUTHIER_URL, else the address that
            `luthier up` left in the data folder.
        api_key: default: LUTHIER_API_KEY.

    Raises:
        ApiError: there is no address or no key.
    """

    def __init__(self, base_url: str | None = None, api_key: str | None = None) -> None:
        self.connection = Connection(base_url, api_key)
        self.files = Files(self.connection)
        self.jobs = Jobs(self.connection)
        self.models = Models(self.connection)
        self.webhooks = Webhooks(self.connection)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        self.connection.close()
