"""What the document says of each operation that no signature tells: error codes, headers, links.

Codes that follow from an operation's form (a key, a path, a body) are added by themselves; what stands in
`CODES` comes on top. An operation that is not named here has those of its form alone.
"""

from collections.abc import Mapping
from typing import Any

from luthier.errors import CATALOGUE

_KEY = (
    "invalid_api_key", "insufficient_permissions", "mismatched_organization", "mismatched_project",
    "project_archived", "rate_limit_exceeded",
)  # fmt: skip
_ANY = ("invalid_value", "server_error", "database_unavailable", "host_not_allowed")
_QUERY = ("invalid_value", "invalid_type", "missing_required_parameter")
_PATH = {
    "{job_id}": ("fine_tune_not_found", "not_found", "method_not_allowed"),
    "{file_id}": ("file_not_found", "not_found", "method_not_allowed"),
    "{model_id}": ("model_not_found",),
    "/artifacts/{name}": ("artifact_not_found",),
    "/secrets/{name}": ("secret_not_found",),
    "{upload_id}": ("upload_not_found", "not_found", "method_not_allowed"),
    "{checkpoint}": ("model_not_found",),
    "{permission_id}": ("not_found",),
    "{endpoint_id}": ("not_found", "method_not_allowed"),
    "{project_id}": ("project_not_found", "method_not_allowed"),
    "{api_key_id}": ("api_key_not_found",),
}
_JSON = (
    "invalid_json",
    "invalid_value",
    "invalid_type",
    "missing_required_parameter",
    "unknown_parameter",
    "unsupported_media_type",
    "body_too_large",
    "upload_too_slow",
)
_STORED = ("storage_unavailable", "range_not_satisfiable")
_DATA = ("invalid_training_file", "invalid_validation_file")
_MODEL = ("invalid_model", "model_not_supported")
_NEW_JOB = (*_DATA, *_MODEL, "model_not_found", "capacity_exceeded", "not_done_yet", "invalid_file")
_LOOK = (*_MODEL, "model_not_found", "invalid_file", "not_done_yet", "storage_unavailable")

CODES: Mapping[str, tuple[str, ...]] = {
    "create_file": (
        "invalid_multipart", "invalid_file", "file_too_large", "unsupported_file_format", "checksum_mismatch",
        "upload_too_slow", "missing_required_parameter", "unknown_parameter", "unsupported_media_type",
        "quota_exceeded", "disk_full", "storage_unavailable",
    ),
    "delete_file": ("file_in_use",),
    "create_upload": ("file_too_large", "quota_exceeded", "disk_full"),
    "create_upload_part": (
        "invalid_multipart", "file_too_large", "upload_not_pending", "upload_too_slow", "quota_exceeded",
        "missing_required_parameter", "unknown_parameter", "unsupported_media_type", "disk_full",
        "storage_unavailable",
    ),
    "complete_upload": (
        "upload_not_pending", "checksum_mismatch", "invalid_file", "unsupported_file_format",
        "idempotency_key_reused", "not_done_yet",
        "quota_exceeded", "disk_full", "storage_unavailable",
    ),
    "cancel_upload": ("upload_not_pending",),
    "delete_model": ("model_in_use",),
    "create_webhook_endpoint": ("quota_exceeded", "not_done_yet"),
    "update_webhook_endpoint": ("not_done_yet",),
    "test_webhook_endpoint": ("webhook_unreachable", "not_done_yet"),
    "redeliver_webhook": ("webhook_disabled",),
    "get_file_content": _STORED,
    "get_file_validation": ("invalid_file", "not_done_yet"),
    "validate_file": _LOOK,
    "preview_file": _LOOK,
    "prepare_file": ("invalid_file", "not_done_yet", "storage_unavailable", "unsupported_file_format"),
    "register_file": ("invalid_file", "storage_unavailable", "unsupported_file_format"),
    "unregister_file": ("invalid_file", "storage_unavailable"),
    "create_job": (
        *_NEW_JOB, "quota_exceeded", "idempotency_key_reused", "fine_tune_not_found", "secret_not_found",
        "disk_full",
    ),
    "estimate_job": _NEW_JOB,
    "delete_job": ("job_not_ended", "job_in_use"),
    "update_job": ("job_already_terminal", "job_not_waiting", "precondition_failed"),
    "cancel_job": ("job_already_terminal",),
    "pause_job": ("job_already_terminal",),
    "resume_job": ("job_already_terminal",),
    "retry_job": (*_DATA, *_MODEL, "job_not_retryable", "quota_exceeded"),
    "get_logs": _STORED,
    "get_artifact": _STORED,
    "get_artifacts_tar": ("artifact_not_found", "storage_unavailable"),
    "get_readiness": ("not_ready",),
}  # fmt: skip

_TEXT = {"schema": {"type": "string"}}
_BYTES: Mapping[str, Any] = {"application/octet-stream": {}}
_TAGGED = ("get_job", "list_jobs", "get_file", "list_files")
_RANGED = ("get_file_content", "get_artifact", "get_logs")
# What is answered otherwise than as JSON, by media type.
CONTENT: Mapping[str, Mapping[str, Any]] = {
    "get_file_content": _BYTES,
    "get_artifact": _BYTES,
    "get_artifacts_tar": {"application/x-tar": {}},
    "get_logs": {"text/plain": _TEXT},
    "get_prometheus_metrics": {"text/plain": _TEXT},
}


def _header(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": text, **_TEXT}


_IF_NONE_MATCH = _header("If-None-Match", "ETag of an answer that is known; 304 where nothing changed")
_RANGE = _header("Range", "`bytes=FIRST-LAST`; one range is served, of several the whole file")
_IF_RANGE = _header("If-Range", "ETag; another file is sent whole")
_BY_METADATA = {
    "name": "metadata",
    "in": "query",
    "required": False,
    "description": "`metadata[key]=value`: with all of these pairs; `metadata=null`: without any",
    "style": "deepObject",
    "explode": True,
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
}
_BY_TIME = {
    "name": "effective_at",
    "in": "query",
    "required": False,
    "description": "Unix seconds, as `effective_at[gte]=`",
    "style": "deepObject",
    "explode": True,
    "schema": {
        "type": "object",
        "properties": {name: {"type": "integer", "minimum": 0} for name in ("gt", "gte", "lt", "lte")},
        "additionalProperties": False,
    },
}


def _one_of(name: str, text: str) -> dict[str, Any]:
    schema = {"type": "array", "items": {"type": "string"}}
    return {"name": f"{name}[]", "in": "query", "required": False, "description": text, "schema": schema}


_IDEMPOTENCY = _header(
    "Idempotency-Key", "Visible ASCII, such as a UUID: for a day the same request finds what it made first"
)
# Parameters that no signature has.
PARAMETERS: Mapping[str, tuple[dict[str, Any], ...]] = {
    **dict.fromkeys(("get_job", "get_file", "list_files"), (_IF_NONE_MATCH,)),
    "get_file_content": (_RANGE, _IF_RANGE, _IF_NONE_MATCH),
    "get_artifact": (_RANGE, _IF_RANGE, _IF_NONE_MATCH),
    "get_logs": (_RANGE,),
    "list_jobs": (_BY_METADATA, _IF_NONE_MATCH),
    "list_audit_logs": (
        _BY_TIME,
        _one_of("event_types", "Of one of these types"),
        _one_of("actor_ids", "By one of these keys"),
        _one_of("project_ids", "In one of these projects"),
        _one_of("resource_ids", "About one of these"),
    ),
    "create_job": (_IDEMPOTENCY,),
    "complete_upload": (_IDEMPOTENCY,),
}

# Headers of answers, under `components`; names as they are sent.
ANSWER_HEADERS: Mapping[str, Mapping[str, Any]] = {
    name: {"description": text, **_TEXT}
    for name, text in {
        "x-request-id": "Names the request in the server's log, as the client did, or anew; on every answer",
        "Retry-After": "Seconds to wait before the same is sent again",
        "x-should-retry": "`false` where the same would be refused again",
        "x-ratelimit-limit-requests": "Requests a minute; as those below, wherever there is a limit",
        "x-ratelimit-remaining-requests": "Those that are left of this minute",
        "x-ratelimit-reset-requests": "Time to the next minute, as `12s`",
        "RateLimit": "The same as draft-ietf-httpapi-ratelimit-headers has it",
        "RateLimit-Policy": "The limit, likewise",
        "Idempotent-Replayed": "`true` where the answer is about what an earlier request made",
        "ETag": "Names this version",
        "Repr-Digest": "SHA-256 of the whole file, as RFC 9530 has it",
        "Content-Disposition": "The name of the file",
        "Content-Range": "The bytes that are sent, and how many there are",
    }.items()
}
_RATE_LIMIT = tuple(name for name in ANSWER_HEADERS if "ratelimit" in name.lower())
_OF_FILES = ("get_file_content", "get_artifact")
_HEADERS_OF_GOOD: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_TAGGED, ("ETag",)),
    **dict.fromkeys(_OF_FILES, ("ETag", "Repr-Digest", "Content-Disposition")),
    "create_job": ("Idempotent-Replayed",),
    "complete_upload": ("Idempotent-Replayed",),
}

_JOB_ID, _FILE_ID = {"job_id": "$response.body#/id"}, {"file_id": "$response.body#/id"}
_OF_A_JOB = (
    "get_job", "update_job", "cancel_job", "pause_job", "resume_job", "retry_job", "list_events",
    "list_checkpoints", "get_metrics", "get_logs", "list_artifacts", "get_artifacts_tar", "delete_job",
)  # fmt: skip
_OF_A_FILE = (
    "get_file", "get_file_content", "get_file_validation", "validate_file", "preview_file", "prepare_file",
    "register_file", "unregister_file", "delete_file",
)  # fmt: skip
_TO_JOB = {name: {"operationId": name, "parameters": _JOB_ID} for name in _OF_A_JOB}
_TO_FILE = {name: {"operationId": name, "parameters": _FILE_ID} for name in _OF_A_FILE}
LINKS: Mapping[str, Mapping[str, Any]] = {
    "create_job": _TO_JOB,
    "retry_job": _TO_JOB,
    "create_file": _TO_FILE,
    "prepare_file": _TO_FILE,
    "list_jobs": {
        "get_job": {"operationId": "get_job", "parameters": {"job_id": "$response.body#/data/0/id"}}
    },
    "list_files": {
        "get_file": {"operationId": "get_file", "parameters": {"file_id": "$response.body#/data/0/id"}}
    },
    "list_models": {
        "get_model": {"operationId": "get_model", "parameters": {"model_id": "$response.body#/data/0/id"}}
    },
}


def complete(operation: dict[str, Any], path: str) -> None:
    """Write into an operation of the document what is known of it here."""
    name, responses = operation["operationId"], operation["responses"]
    good = responses["200"]
    if name in CONTENT:
        good["content"] = dict(CONTENT[name])
    if name in _TAGGED or name in _OF_FILES:
        responses["304"] = {"description": "The version that `If-None-Match` names"}
    if name in _RANGED:
        responses["206"] = {"description": "The range that was asked for", "content": dict(CONTENT[name])}
        responses["307"] = {"description": "Where the bytes are, for some minutes"}
    if name in LINKS:
        good["links"] = dict(LINKS[name])
    operation.setdefault("parameters", []).extend(PARAMETERS.get(name, ()))
    responses.pop("4XX", None)
    responses.pop("5XX", None)
    responses.update(_errors(codes_of(operation, path)))
    for status, response in responses.items():
        names = _headers_of(name, status, has_key=bool(operation["security"]))
        if names:
            response["headers"] = {one: {"$ref": f"#/components/headers/{one}"} for one in names}
    if not operation["parameters"]:
        del operation["parameters"]


def _headers_of(name: str, status: str, *, has_key: bool) -> list[str]:
    """The headers that an answer has, or may have; what all have is named where it is looked for first."""
    found = ["x-request-id"] if status in ("200", "500") else []
    if status in ("429", "503"):
        found.append("Retry-After")
    if status == "429":
        found += ["x-should-retry", *(_RATE_LIMIT if has_key else ())]
    if status in ("200", "206", "304"):
        found += _HEADERS_OF_GOOD.get(name, ())
    if status == "206":
        found.append("Content-Range")
    return found


def codes_of(operation: Mapping[str, Any], path: str) -> list[str]:
    """The error codes of an operation, in the order of the catalogue."""
    found: set[str] = set(CODES.get(operation["operationId"], ()))
    if operation["security"]:
        found.update(_KEY, _ANY)
    for part, codes in _PATH.items():
        if part in path:
            found.update(codes)
    if any(parameter["in"] == "query" for parameter in operation.get("parameters", ())):
        found.update(_QUERY)
    if "application/json" in operation.get("requestBody", {}).get("content", {}):
        found.update(_JSON)
    return [code for code in CATALOGUE if code in found]


def _errors(codes: list[str]) -> dict[str, Any]:
    """One response a status, which names its codes."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(CATALOGUE[code].status, []).append(code)
    return {
        str(status): {
            "description": ". ".join(f"`{code}`: {CATALOGUE[code].title}" for code in by_status[status]),
            "content": {"application/json": {"schema": _error_with(by_status[status])}},
        }
        for status in sorted(by_status)
    }


def _error_with(codes: list[str]) -> dict[str, Any]:
    narrowed = {"properties": {"error": {"properties": {"code": {"enum": codes}}}}}
    return {"allOf": [{"$ref": "#/components/schemas/Error"}, narrowed]}
