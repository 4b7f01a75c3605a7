"""The tables. The database is the queue: a job's row with its lease and epoch is the only truth.

Every table carries `project_id`; where it may be null (workers, the leader row) the row serves all projects.
Times are aware and UTC. `migrations/` builds these tables; a test compares the two.
"""

from luthier.tables.base import Base, UtcDateTime
from luthier.tables.files import File, PreparedRows, Upload, UploadPart
from luthier.tables.jobs import Job, JobFile, JobMetadata, in_state, is_claimable, is_leased, is_queued
from luthier.tables.operation import BackupNote, IdempotencyKey, Leader, Outbox, Worker
from luthier.tables.runs import Artifact, Checkpoint, CheckpointPermission, JobEvent, Metric, Run
from luthier.tables.tenants import ApiKey, AuditLog, Organization, Project, RequestCount, Secret
from luthier.tables.webhooks import WebhookDelivery, WebhookEndpoint

__all__ = [
    "ApiKey",
    "Artifact",
    "AuditLog",
    "BackupNote",
    "Base",
    "Checkpoint",
    "CheckpointPermission",
    "File",
    "IdempotencyKey",
    "Job",
    "JobEvent",
    "JobFile",
    "JobMetadata",
    "Leader",
    "Metric",
    "Organization",
    "Outbox",
    "PreparedRows",
    "Project",
    "RequestCount",
    "Run",
    "Secret",
    "Upload",
    "UploadPart",
    "UtcDateTime",
    "WebhookDelivery",
    "WebhookEndpoint",
    "Worker",
    "in_state",
    "is_claimable",
    "is_leased",
    "is_queued",
]
