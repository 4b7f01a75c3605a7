"""What the server answers, as types. Fields that this version does not know are kept and never refused.

Times are Unix seconds. The objects are OpenAI's with Luthier's own fields beside them.
"""

from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luthier.client.errors import ApiError

FINAL_STATUSES = frozenset({"succeeded", "failed", "cancelled"})


class Answer(BaseModel):
    """An object that the server sent."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    @classmethod
    def read(cls, body: bytes | str) -> Self:
        """The object in a good answer.

        Raises:
            ApiError: it is none, as where a proxy answers with a page of its own.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(map(str, problem["loc"]))
            told = f"{where}: {problem['msg']}" if where else problem["msg"]
            raise ApiError(
                f"The answer is not what Luthier answers ({told}). Is this the server's address?"
            ) from error


Row = TypeVar("Row", bound=Answer)


class Page(Answer, Generic[Row]):
    """One page of a list; `last_id` as `after` gives the next one."""

    data: list[Row]
    has_more: bool = False
    last_id: str | None = None

    @property
    def next_after(self) -> str | None:
        """What leads to the next page; None where this one is empty."""
        return self.last_id or getattr(self.data[-1], "id", None) if self.data else None


class File(Answer):
    """An uploaded file. `status` is `uploaded` (being checked), `processed` or `error`."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str = "processed"
    status_details: str | None = None
    dataset_name: str | None = None


class UploadPart(Answer):
    """A part of an upload; `sha256` is hex."""

    id: str
    bytes: int = 0
    sha256: str | None = None


class Upload(Answer):
    """A file that comes in parts; `file` is there once it is complete."""

    id: str
    bytes: int
    filename: str
    purpose: str
    status: str
    expires_at: int | None = None
    parts: list[UploadPart] = []
    file: File | None = None


class Validation(Answer):
    """What was found in a file; `tokens` is there where it was asked for a model."""

    file_id: str = ""
    valid: bool
    format: str | None = None
    row_count: int = 0
    size_bytes: int = 0
    error_count: int = 0
    errors: list[dict[str, Any]] = []
    warnings: list[dict[str, Any]] = []
    statistics: dict[str, Any] | None = None
    tokens: dict[str, Any] | None = None


class Preview(Answer):
    """Rows as a model sees them: each has `text`, `tokens` with `is_trained`, `messages` and `warnings`."""

    model: str = ""
    offset: int = 0
    max_seq_length: int = 0
    data: list[dict[str, Any]]


class Registration(Answer):
    """A file under a name; `warnings` tell what is odd about its entry."""

    file_id: str
    name: str
    entry: dict[str, Any]
    warnings: list[str] = []


class Estimate(Answer):
    """What a job would be and cost; None is what cannot be told, and `unavailable_reason` says why."""

    valid: bool
    problems: list[dict[str, Any]] = []
    warnings: list[dict[str, Any]] = []
    examples: int | None = None
    train_tokens: int | None = None
    truncated_examples: int | None = None
    steps: int | None = None
    tokens: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    seconds: dict[str, Any] | None = None
    disk_mb: int | None = None
    unavailable_reason: str | None = None


class JobError(Answer):
    """Why a job failed and which setting to change; `details` tell the same to programs."""

    code: str | None = None
    message: str | None = None
    param: str | None = None
    details: list[dict[str, Any]] = []


class Progress(Answer):
    """How far a job has come; all of it is None before the first step."""

    step: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    train_loss: float | None = None
    tokens_per_second: float | None = None
    seconds_remaining: float | None = None


class Place(Answer):
    """Where a job stands in the queue; position 1 is the next one."""

    position: int
    wait_seconds: float | None = None


class Job(Answer):
    """A fine-tuning job. `phase` is the finer truth behind `status`."""

    id: str
    status: str
    created_at: int
    model: str
    training_file: str
    validation_file: str | None = None
    name: str | None = None
    metadata: dict[str, str] | None = None
    priority: int = 0
    parent_job_id: str | None = None
    attempts: int = 0
    phase: str | None = None
    queue: Place | None = None
    fine_tuned_model: str | None = None
    finished_at: int | None = None
    trained_tokens: int | None = None
    error: JobError | None = None
    progress: Progress | None = None
    result_files: list[str] = []
    hyperparameters: dict[str, Any] = {}
    qlora: dict[str, Any] | None = None

    @property
    def is_final(self) -> bool:
        return self.status in FINAL_STATUSES


class Event(Answer):
    """A fact about a job; of type `metrics`, `data` holds numbers at a step."""

    id: str
    created_at: int
    level: str
    message: str
    type: str = "message"
    data: dict[str, Any] | None = None


class Checkpoint(Answer):
    """A state that the job could go on from."""

    id: str
    created_at: int
    step_number: int
    fine_tuned_model_checkpoint: str
    metrics: dict[str, Any] = {}


class Metrics(Answer):
    """Numbers by step, as columns: `data["train_loss"][i]` was measured at `data["step"][i]`."""

    data: dict[str, list[float | None]]
    last_step: int | None = None
    is_final: bool = False

    def series(self, name: str) -> list[tuple[int, float]]:
        """The measured (step, value) pairs of one metric, steps ascending."""
        steps, values = self.data.get("step", []), self.data.get(name, [])
        return [
            (int(step), value)
            for step, value in zip(steps, values, strict=True)
            if step is not None and value is not None
        ]


class Artifact(Answer):
    """A finished file of a job. `sha256` is hex."""

    name: str
    bytes: int
    sha256: str
    kind: str = "other"


class Model(Answer):
    """A base model, or one that a job has made."""

    id: str
    created: int
    owned_by: str


class WebhookEndpoint(Answer):
    """A URL that is told of jobs. `signing_secret` is there where it has just been made."""

    id: str
    created_at: int
    updated_at: int | None = None
    name: str
    url: str
    event_types: list[str]
    status: str = "enabled"
    disabled_reason: str | None = None
    signing_secret_hint: str | None = None
    signing_secret: str | None = Field(default=None, repr=False)


class WebhookTest(Answer):
    """What a target answered to a sample."""

    event_type: str
    status_code: int
    milliseconds: int | None = None


class WebhookDelivery(Answer):
    """One attempt to tell an endpoint of something; `next_attempt_at` is None where there is none."""

    id: str
    created_at: int
    event_id: str
    event_type: str
    data_id: str
    attempt: int
    status_code: int | None = None
    milliseconds: int = 0
    error: str | None = None
    next_attempt_at: int | None = None


class Worker(Answer):
    """An agent: one device, or one place on the CPU. Memory is None where it is not counted."""

    id: str
    host: str
    queue: str
    device: str
    state: str
    heartbeat_at: int
    device_name: str | None = None
    reason: str | None = None
    labels: list[str] = []
    memory_bytes: int | None = None
    free_memory_bytes: int | None = None
    version: str | None = None


class Project(Answer):
    """What owns files, jobs, keys and secrets; `quotas` are those of its own."""

    id: str
    name: str
    created_at: int
    archived_at: int | None = None
    status: str = "active"
    quotas: dict[str, int | None] = {}
    storage_bytes: int = 0


class ApiKey(Answer):
    """A key; `value` is there where it has just been made, and is the key in full."""

    id: str
    name: str
    redacted_value: str
    created_at: int
    scopes: list[str] = []
    expires_at: int | None = None
    last_used_at: int | None = None
    rotated_to: str | None = None
    requests_per_minute: int | None = None
    value: str | None = Field(default=None, repr=False)


class AuditLog(Answer):
    """That somebody changed something: `type` tells what, `resource_id` of which thing."""

    id: str
    type: str
    effective_at: int
    resource_id: str
    request_id: str | None = None
    address: str | None = None


class Secret(Answer):
    """A secret without its text."""

    id: str
    name: str
    created_at: int
    updated_at: int
