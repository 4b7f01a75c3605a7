"""What can go wrong, in one catalogue: the codes that clients see and the exit codes of child processes.

Raise `LuthierError` (or `invalid`, `not_found`) with the offending place and what to do next; the API, the
command line and the workers turn it into their own form. A message never repeats a secret or a large value.
Exit codes stand in docs/architecture.md; this module imports nothing of the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any


@dataclass(frozen=True)
class ErrorCode:
    """One entry of the catalogue.

    Attributes:
        status: HTTP status that the API answers with.
        type: OpenAI's error type, from which SDKs choose their exception.
        title: one constant line, for people.
    """

    status: int
    type: str
    title: str


_BAD = "invalid_request_error"

CATALOGUE: dict[str, ErrorCode] = {
    "invalid_json": ErrorCode(400, _BAD, "The body is not the JSON that this service reads"),
    "invalid_type": ErrorCode(400, _BAD, "A value has the wrong type"),
    "invalid_value": ErrorCode(400, _BAD, "A value is not allowed"),
    "missing_required_parameter": ErrorCode(400, _BAD, "A required parameter is missing"),
    "unknown_parameter": ErrorCode(400, _BAD, "The request has a field that does not exist"),
    "invalid_file": ErrorCode(400, _BAD, "The file cannot be used for fine-tuning"),
    "file_in_use": ErrorCode(400, _BAD, "The file is used by a job that has not ended"),
    "invalid_training_file": ErrorCode(400, _BAD, "The training file cannot be used"),
    "invalid_validation_file": ErrorCode(400, _BAD, "The validation file cannot be used"),
    "invalid_model": ErrorCode(400, _BAD, "The model name is not one that this service may load"),
    "model_not_supported": ErrorCode(400, _BAD, "The model cannot be fine-tuned with these settings"),
    "job_already_terminal": ErrorCode(400, _BAD, "The job has ended"),
    "capacity_exceeded": ErrorCode(400, _BAD, "No worker has what the job asks for"),
    "job_not_waiting": ErrorCode(400, _BAD, "The job does not wait in a queue"),
    "job_not_ended": ErrorCode(400, _BAD, "The job has not ended"),
    "job_in_use": ErrorCode(400, _BAD, "Another job starts from this one"),
    "job_not_retryable": ErrorCode(400, _BAD, "The job cannot be tried again"),
    "webhook_unreachable": ErrorCode(400, _BAD, "The webhook's URL did not answer"),
    "webhook_disabled": ErrorCode(400, _BAD, "The webhook endpoint is disabled"),
    "upload_not_pending": ErrorCode(400, _BAD, "The upload is over"),
    "model_in_use": ErrorCode(400, _BAD, "The model is used by a job that has not ended"),
    "invalid_multipart": ErrorCode(400, _BAD, "The upload is not well-formed multipart/form-data"),
    "invalid_api_key": ErrorCode(401, _BAD, "The API key is missing or wrong"),
    "mismatched_organization": ErrorCode(401, _BAD, "The key belongs to another organisation"),
    "mismatched_project": ErrorCode(401, _BAD, "The key belongs to another project"),
    "insufficient_permissions": ErrorCode(403, "permission_error", "The key may not do this"),
    "project_archived": ErrorCode(403, "permission_error", "The project is archived"),
    "not_found": ErrorCode(404, _BAD, "There is no such thing"),
    "fine_tune_not_found": ErrorCode(404, _BAD, "There is no such job"),
    "file_not_found": ErrorCode(404, _BAD, "There is no such file"),
    "upload_not_found": ErrorCode(404, _BAD, "There is no such upload"),
    "model_not_found": ErrorCode(404, _BAD, "There is no such model"),
    "artifact_not_found": ErrorCode(404, _BAD, "There is no such artifact"),
    "project_not_found": ErrorCode(404, _BAD, "There is no such project"),
    "api_key_not_found": ErrorCode(404, _BAD, "There is no such API key"),
    "secret_not_found": ErrorCode(404, _BAD, "There is no such secret"),
    "method_not_allowed": ErrorCode(405, _BAD, "The path does not take this method"),
    "body_too_large": ErrorCode(413, _BAD, "The body is too large"),
    "file_too_large": ErrorCode(413, _BAD, "The file is too large"),
    "unsupported_file_format": ErrorCode(415, _BAD, "The file's format is not one that is read"),
    "upload_too_slow": ErrorCode(408, _BAD, "The body comes too slowly"),
    "checksum_mismatch": ErrorCode(400, _BAD, "What came is not what was announced"),
    "precondition_failed": ErrorCode(412, _BAD, "It has changed since it was read"),
    "unsupported_media_type": ErrorCode(415, _BAD, "The content type is not one that this path reads"),
    "range_not_satisfiable": ErrorCode(416, _BAD, "The range lies outside the file"),
    "idempotency_key_reused": ErrorCode(422, _BAD, "The Idempotency-Key came before with another request"),
    "host_not_allowed": ErrorCode(421, _BAD, "The server is not known by this name"),
    "rate_limit_exceeded": ErrorCode(429, "rate_limit_error", "The key has sent too many requests"),
    "quota_exceeded": ErrorCode(429, "rate_limit_error", "The project has reached a limit"),
    "server_error": ErrorCode(500, "server_error", "The service failed"),
    "database_unavailable": ErrorCode(503, "server_error", "The database cannot be reached"),
    "storage_unavailable": ErrorCode(503, "server_error", "The storage cannot be reached"),
    "not_ready": ErrorCode(503, "server_error", "The service is not ready"),
    "not_done_yet": ErrorCode(503, "server_error", "The answer is still being worked out"),
    "disk_full": ErrorCode(507, "server_error", "The disk has no room"),
}

# Findings of validation that refuse a file otherwise than as `invalid_file`; one with a dot at its end stands
# for all that begin so.
_CODE_OF_FINDING = {
    "archive.": "unsupported_file_format",
    "format.magic_mismatch": "unsupported_file_format",
    "dataset.too_large": "file_too_large",
    "dataset.decoded_too_large": "file_too_large",
}

# Why a job failed, as it stands in `job.error.code`; `JobFailure` carries one of these.
JOB_FAILURES = frozenset(
    {
        "invalid_spec",
        "invalid_training_file",
        "invalid_validation_file",
        "model_not_found",
        "model_load_failed",
        "out_of_memory",
        "capacity_exceeded",
        "disk_full",
        "nan_loss",
        "gpu_fault",
        "worker_lost",
        "process_crashed",
        "process_hung",
        "out_of_host_memory",
        "io_error",
        "remote_unavailable",
        "server_error",
    }
)


@dataclass
class LuthierError(Exception):
    """Something that the caller can be told.

    Attributes:
        message: what is wrong, where, and what to change.
        code: a key of `CATALOGUE`.
        param: dotted path of the offending field, or None.
        details: more of the same kind, each with `loc`, `message` and, for files, `line`.
        retry_after_seconds: when to ask again; None where the code alone decides.
    """

    message: str
    code: str = "invalid_value"
    param: str | None = None
    details: Sequence[dict[str, Any]] = field(default_factory=tuple)
    retry_after_seconds: int | None = None

    def __post_init__(self) -> None:
        super().__init__(self.message)
        if self.code not in CATALOGUE:
            raise KeyError(f"error code {self.code!r} is not in the catalogue")

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Failure:
    """Why a job ended badly, as it stands in `job.error`.

    Attributes:
        code: one of `JOB_FAILURES`.
        message: what happened and which setting to change.
        param: `training_file`, `validation_file`, a dotted setting, or None.
        details: as in `LuthierError`; facts for programs and what to change, the most useful first.
    """

    code: str
    message: str
    param: str | None = None
    details: Sequence[dict[str, Any]] = ()


class JobFailure(Exception):  # noqa: N818, a failed job is not an error of the program
    """A run that cannot go on, told by the child process to its supervisor.

    Args:
        message, code, param: as in `Failure`.
        exit_code: what the process ends with.
        details: as in `LuthierError`; more about the same failure.
    """

    def __init__(
        self,
        message: str,
        code: str,
        exit_code: "ExitCode",
        param: str | None = None,
        details: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(message)
        if code not in JOB_FAILURES:
            raise KeyError(f"failure code {code!r} is not one of JOB_FAILURES")
        self.message, self.code, self.exit_code, self.param = message, code, exit_code, param
        self.details = details


class ExitCode(IntEnum):
    """How a child process ends; the supervisor decides from this what becomes of the job."""

    DONE = 0
    BAD_SPEC = 64
    BAD_DATA = 65
    MISSING = 66
    UNAVAILABLE = 69
    DISK_FULL = 73
    IO_ERROR = 74
    TRY_LATER = 75
    GPU_OUT_OF_MEMORY = 77
    LOSS_NOT_FINITE = 78
    GPU_FAULT = 79
    STOPPED = 85


# The reason that stands on the job when the child could not tell one itself.
FAILURE_OF_EXIT: dict[ExitCode, str] = {
    ExitCode.BAD_SPEC: "invalid_spec",
    ExitCode.BAD_DATA: "invalid_training_file",
    ExitCode.MISSING: "model_not_found",
    ExitCode.DISK_FULL: "disk_full",
    ExitCode.IO_ERROR: "io_error",
    ExitCode.GPU_OUT_OF_MEMORY: "out_of_memory",
    ExitCode.LOSS_NOT_FINITE: "nan_loss",
    ExitCode.GPU_FAULT: "gpu_fault",
}

# After these the same job may well succeed: it goes back to the queue.
TRANSIENT_EXITS = frozenset({ExitCode.UNAVAILABLE, ExitCode.TRY_LATER, ExitCode.STOPPED})


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> LuthierError:
    """A value that cannot be accepted: HTTP 400."""
    return LuthierError(message, code, param)


def code_of_finding(finding: str) -> str:
    """The code that a file is refused with for what validation found first."""
    family = finding.partition(".")[0] + "."
    return _CODE_OF_FINDING.get(finding) or _CODE_OF_FINDING.get(family, "invalid_file")


def not_found(what: str, identifier: str, code: str = "not_found", param: str = "id") -> LuthierError:
    """Something that is not there, or belongs to somebody else: HTTP 404."""
    return LuthierError(f"No such {what}: {printable(identifier)}", code, param)


def printable(text: str, limit: int = 80) -> str:
    """`text` on one line, without control or bidirectional characters, at most `limit` characters."""
    if len(text) <= limit and text.isprintable():
        return text
    # A user's text may have millions of characters, of which one more than are shown tells that there are.
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
