"""Examples of the document: a body for each call that takes one, and what the main answers look like.

They tell of one small job on the sample data of the README. Tests hold each against its schema, and OpenAI's
clients read those that are OpenAI's.
"""

import json
from typing import Any

_FILE_ID, _JOB_ID = "file-uVqT5fTxGHk2dM9sZpX7aLwe", "ftjob-Zt4mB1xQ8rKc6nWy3vHs9DfJ"
_MODEL = "ft:tiny:org-local:support:Zt4mB1xQ8rKc"
_CREATED_AT = 1_790_000_000

# A file's content, as JSON Lines.
TRAINING_ROWS = "".join(
    json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]})
    + "\n"
    for asked, said in (
        ("Where is my order?", "On its way: it arrives on Friday."),
        ("How do I change my password?", "Open Settings, then Security."),
        ("Do you ship to Norway?", "Yes, within six working days."),
        ("Can I pay by invoice?", "Yes, from the second order on."),
    )
)

BODIES: dict[str, dict[str, Any]] = {
    "JobRequest": {
        "model": "tiny",
        "training_file": _FILE_ID,
        "suffix": "support",
        "seed": 7,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
        "metadata": {"team": "support"},
        "qlora": {"r": 16, "alpha": 32, "max_seq_length": 512},
        "dataset": {"validation_split": 0.1},
    },
    "JobPatch": {"name": "support-bot", "metadata": {"team": "support"}, "priority": 5},
    "RetryRequest": {"from": "checkpoint"},
    "ReportRequest": {"model": "tiny"},
    "PreviewRequest": {"model": "tiny", "rows": 3},
    "ConvertRequest": {"columns": {"instruction": "question", "input": "context", "output": "answer"}},
    "RegisterRequest": {
        "name": "support_chats",
        "entry": {"formatting": "sharegpt", "columns": {"messages": "conversations"}},
    },
    "UploadRequest": {
        "bytes": 1_200_000_000,
        "filename": "support.jsonl",
        "mime_type": "text/jsonl",
        "purpose": "fine-tune",
    },
    "CompleteRequest": {"part_ids": ["part_uVqT5fTxGHk2dM9sZpX7aLwe", "part_Kd8wQz2LmVb5yTnC7rXs4PjG"]},
    "PermissionRequest": {"project_ids": ["proj-9sZpX7aLweuVqT5fTxGHk2dM"]},
    "WebhookRequest": {
        "name": "ci",
        "url": "https://example.com/luthier",
        "event_types": ["fine_tuning.job.succeeded", "fine_tuning.job.failed"],
    },
    "WebhookPatch": {"name": "ci"},
    "RotateSecretRequest": {"keep_old_secret_active_for_24_hours": True},
    "WebhookTestRequest": {"event_type": "fine_tuning.job.succeeded"},
    "CreateProjectRequest": {
        "name": "support",
        "quotas": {"running_jobs": 2, "storage_bytes": 50_000_000_000},
    },
    "UpdateProjectRequest": {"name": "support"},
    "CreateApiKeyRequest": {"name": "ci", "scopes": ["read"], "expires_in_seconds": 7_776_000},
    "UpdateApiKeyRequest": {"name": "ci"},
    "CreateAdminApiKeyRequest": {"name": "operations"},
    "RotateApiKeyRequest": {"grace_hours": 24},
    "PutSecretRequest": {"name": "hf_token", "value": "hf_replace_me"},
}

_HYPERPARAMETERS = {"n_epochs": 3, "batch_size": 8, "learning_rate_multiplier": 1.0}
_PROGRESS = {
    "step": 96,
    "total_steps": 96,
    "epoch": 3.0,
    "percent": 100.0,
    "train_loss": 0.42,
    "tokens_per_second": 5120.0,
    "seconds_remaining": 0.0,
}
_JOB = {
    "id": _JOB_ID,
    "object": "fine_tuning.job",
    "created_at": _CREATED_AT,
    "error": None,
    "estimated_finish": None,
    "fine_tuned_model": _MODEL,
    "finished_at": _CREATED_AT + 360,
    "hyperparameters": _HYPERPARAMETERS,
    "integrations": None,
    "metadata": {"team": "support"},
    "method": {"type": "supervised", "supervised": {"hyperparameters": _HYPERPARAMETERS}},
    "model": "tiny",
    "organization_id": "org-local",
    "result_files": ["file-Kd8wQz2LmVb5yTnC7rXs4PjG"],
    "seed": 7,
    "status": "succeeded",
    "trained_tokens": 48_300,
    "training_file": _FILE_ID,
    "user_provided_suffix": "support",
    "validation_file": None,
    "name": "support-bot",
    "priority": 0,
    "parent_job_id": None,
    "phase": None,
    "blocked_on": None,
    "retry_at": None,
    "progress": _PROGRESS,
    "queue": None,
    "qlora": {
        "method": "qlora",
        "r": 16,
        "alpha": 32.0,
        "max_seq_length": 512,
        "learning_rate": 0.0002,
        "seed": 7,
    },
    "dataset": {"template": None, "train_on": "assistant", "validation_split": 0.1},
    "attempts": 1,
}
_FILE = {
    "id": _FILE_ID,
    "object": "file",
    "bytes": 184_320,
    "created_at": _CREATED_AT - 60,
    "expires_at": None,
    "filename": "support.jsonl",
    "purpose": "fine-tune",
    "status": "processed",
    "status_details": None,
    "dataset_name": None,
}
_EVENT = {
    "id": "ftevent-Zt4mB1xQ8rKc6nWy3vHs9DfJ-42",
    "object": "fine_tuning.job.event",
    "created_at": _CREATED_AT + 120,
    "level": "info",
    "message": "Step 40/96: training loss=0.81",
    "type": "metrics",
    "data": {"step": 40, "total_steps": 96, "train_loss": 0.81, "train_mean_token_accuracy": 0.74},
}
_CHECKPOINT = {
    "id": "ftckpt-Zt4mB1xQ8rKc6nWy3vHs9DfJ-e1-s96",
    "object": "fine_tuning.job.checkpoint",
    "created_at": _CREATED_AT + 350,
    "fine_tuned_model_checkpoint": f"{_MODEL}:ckpt-step-96",
    "fine_tuning_job_id": _JOB_ID,
    "step_number": 96,
    "metrics": {"step": 96.0, "train_loss": 0.42, "valid_loss": 0.55, "full_valid_loss": 0.55},
}
_MODEL_OBJECT = {"id": _MODEL, "object": "model", "created": _CREATED_AT + 360, "owned_by": "org-local"}


def _page(row: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [row], "first_id": row["id"], "last_id": row["id"], "has_more": False}


# By the schema that they are of.
ANSWERS: dict[str, dict[str, Any]] = {
    "JobObject": _JOB,
    "ListPage_JobObject_": _page(_JOB),
    "JobDeleted": {"id": _JOB_ID, "object": "fine_tuning.job", "deleted": True},
    "FileObject": _FILE,
    "ListPage_FileObject_": _page(_FILE),
    "FileDeleted": {"id": _FILE_ID, "object": "file", "deleted": True},
    "EventObject": _EVENT,
    "ListPage_EventObject_": _page(_EVENT),
    "CheckpointObject": _CHECKPOINT,
    "ListPage_CheckpointObject_": _page(_CHECKPOINT),
    "ModelObject": _MODEL_OBJECT,
    "ModelList": {"object": "list", "data": [_MODEL_OBJECT]},
    "MetricsObject": {
        "object": "fine_tuning.job.metrics",
        "job_id": _JOB_ID,
        "keys": ["train_loss", "eval_loss"],
        "data": {"step": [95, 96], "train_loss": [0.44, 0.42], "eval_loss": [None, 0.55]},
        "last_step": 96,
        "is_final": True,
    },
    "ArtifactList": {
        "object": "list",
        "data": [
            {
                "object": "fine_tuning.job.artifact",
                "name": "adapter/adapter_model.safetensors",
                "kind": "adapter",
                "bytes": 1_245_184,
                "sha256": "5f2b" * 16,
                "created_at": _CREATED_AT + 355,
            }
        ],
        "has_more": False,
    },
    "JobStatusObject": {
        "id": _JOB_ID,
        "object": "fine_tuning.job.status",
        "name": "support-bot",
        "status": "running",
        "phase": "training",
        "progress": _PROGRESS | {"step": 40, "epoch": 1.25, "percent": 41.67, "seconds_remaining": 140.0},
        "attempts": 1,
        "blocked_on": None,
        "retry_at": None,
        "fine_tuned_model": None,
        "error": None,
        "finished_at": None,
    },
    "Error": {
        "error": {
            "message": "Invalid value for 'qlora.r': 0. Expected a value of at least 1.",
            "type": "invalid_request_error",
            "param": "qlora.r",
            "code": "invalid_value",
            "details": [],
        },
        "type": "/docs#invalid_value",
        "title": "A value is not allowed",
        "status": 400,
        "detail": "Invalid value for 'qlora.r': 0. Expected a value of at least 1.",
    },
}
