"""The description of the API: what FastAPI tells by itself, and the bodies and errors that it cannot know.

Bodies are read by our own parsers, so their schemas are named here; all errors have one body, whose codes are
the catalogue's. `page.py` makes the same readable for people.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from api.access import LOCAL, PUBLIC
from api.examples import ANSWERS, BODIES, TRAINING_ROWS
from api.operations import ANSWER_HEADERS, complete
from api.schemas.checkpoints import PermissionRequest
from api.schemas.file_requests import ConvertRequest, PreviewRequest, RegisterRequest, ReportRequest
from api.schemas.job_requests import JobPatch, RetryRequest
from api.schemas.organization_requests import (
    CreateAdminApiKeyRequest,
    CreateApiKeyRequest,
    CreateProjectRequest,
    PutSecretRequest,
    RotateApiKeyRequest,
    UpdateApiKeyRequest,
    UpdateProjectRequest,
)
from api.schemas.streams import JobStatusObject
from api.schemas.uploads import CompleteRequest, UploadRequest
from api.schemas.webhook_requests import RotateSecretRequest, WebhookPatch, WebhookRequest, WebhookTestRequest
from luthier import __version__
from luthier.errors import CATALOGUE
from luthier.spec import JobRequest, Request

_SCHEMAS = "#/components/schemas/"

BODY_MODELS = (
    JobRequest,
    JobPatch,
    RetryRequest,
    ConvertRequest,
    PreviewRequest,
    RegisterRequest,
    ReportRequest,
    WebhookRequest,
    WebhookPatch,
    RotateSecretRequest,
    WebhookTestRequest,
    UploadRequest,
    CompleteRequest,
    PermissionRequest,
    CreateProjectRequest,
    UpdateProjectRequest,
    CreateApiKeyRequest,
    UpdateApiKeyRequest,
    CreateAdminApiKeyRequest,
    RotateApiKeyRequest,
    PutSecretRequest,
)


def json_body(model: type[Request], *, required: bool = True) -> dict[str, Any]:
    """What a route says about its JSON body."""
    content: dict[str, Any] = {"schema": {"$ref": f"{_SCHEMAS}{model.__name__}"}}
    if model.__name__ in BODIES:
        content["example"] = BODIES[model.__name__]
    return {"requestBody": {"required": required, "content": {"application/json": content}}}


_LLAMAFACTORY_JOB = """\
model_name_or_path: tiny
stage: sft
finetuning_type: lora
dataset: support_chats
template: chatml
"""
JOB_BODY: dict[str, Any] = json_body(JobRequest)
# YAML is the same body in another form; what is described is a job of LLaMA-Factory's.
JOB_BODY["requestBody"]["content"]["application/yaml"] = {
    "schema": {
        "type": "object",
        "required": ["model_name_or_path", "dataset"],
        "properties": {"model_name_or_path": {"type": "string"}, "dataset": {"type": "string"}},
        "additionalProperties": True,
    },
    "example": _LLAMAFACTORY_JOB,
}
MULTIPART_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "example": {"purpose": "fine-tune", "file": TRAINING_ROWS},
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "purpose": {"type": "string", "enum": ["fine-tune"]},
                        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
                        "on_bad_row": {
                            "type": "string",
                            "enum": ["refuse", "drop", "keep"],
                            "default": "refuse",
                        },
                        "sha256": {"type": "string", "pattern": "^[0-9A-Fa-f]{64}$"},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                },
            }
        },
    }
}
PART_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "example": {"data": TRAINING_ROWS},
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {
                        "data": {"type": "string", "contentMediaType": "application/octet-stream"}
                    },
                },
            }
        },
    }
}

_ERROR: dict[str, Any] = {
    "type": "object",
    "description": "The one body of every error: OpenAI's `error`, and the members of RFC 9457 beside it.",
    "required": ["error", "type", "title", "status", "detail"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code", "details"],
            "properties": {
                "message": {"type": "string", "description": "What is wrong and what to change"},
                "type": {"type": "string", "enum": sorted({entry.type for entry in CATALOGUE.values()})},
                "param": {"type": ["string", "null"], "description": "Dotted path of the field"},
                "code": {"type": "string", "enum": list(CATALOGUE)},
                "details": {"type": "array", "items": {"type": "object"}},
            },
        },
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}
_ERROR_CONTENT = {"application/json": {"schema": {"$ref": f"{_SCHEMAS}Error"}}}
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request cannot be done", "content": _ERROR_CONTENT},
    "5XX": {"description": "The service cannot do it now", "content": _ERROR_CONTENT},
}
# Shown in streams, which no signature tells of.
_STREAMED = (JobStatusObject,)


def describe_api(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    document = get_openapi(
        title="Luthier",
        version=__version__,
        summary="Fine-tuning as a service: OpenAI's API, and what it lacks beside it.",
        routes=app.routes,
        servers=app.servers,
    )
    components = document.setdefault("components", {})
    _, definitions = models_json_schema(
        [(model, "validation") for model in BODY_MODELS], ref_template=_SCHEMAS + "{model}"
    )
    _, streamed = models_json_schema(
        [(model, "serialization") for model in _STREAMED], ref_template=_SCHEMAS + "{model}"
    )
    schemas = components.setdefault("schemas", {})
    schemas.update(definitions["$defs"] | streamed["$defs"] | {"Error": _ERROR})
    for name, example in ANSWERS.items():
        schemas[name]["examples"] = [example]
    components["headers"] = dict(ANSWER_HEADERS)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "bearerFormat": "lk_..."}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["security"] = _security_of(path)
            complete(operation, path)
    return document


def _security_of(path: str) -> list[dict[str, list[str]]]:
    """What a call has to bring: a key, nothing, or, from elsewhere than this machine, a key."""
    key: dict[str, list[str]] = {"key": []}
    if path in PUBLIC:
        return []
    return [key, {}] if path in LOCAL else [key]
