"""What a job leaves behind, as a list."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from api.schemas.pages import unix_seconds
from luthier.tables import Artifact


class ArtifactObject(BaseModel):
    """A finished file; `name` is its path below `/artifacts/`, `sha256` is hex."""

    object: Literal["fine_tuning.job.artifact"] = "fine_tuning.job.artifact"
    name: str
    kind: str
    bytes: int
    sha256: str
    created_at: int


class ArtifactList(BaseModel):
    """All artifacts of a job, by name; there are few, so no pages."""

    object: Literal["list"] = "list"
    data: Sequence[ArtifactObject]
    has_more: Literal[False] = False


def artifact_list(artifacts: Sequence[Artifact]) -> ArtifactList:
    """What rows show."""
    return ArtifactList(
        data=[
            ArtifactObject(
                name=artifact.name,
                kind=artifact.kind,
                bytes=artifact.size_bytes,
                sha256=artifact.sha256,
                created_at=unix_seconds(artifact.created_at),
            )
            for artifact in artifacts
        ]
    )
