"""The shared cache of prepared rows, as a supervisor uses it: looked into before a preparation, filled after.

Rows lie sealed under `prepared/<project>/<key>/` in storage. A folder that is whole is never replaced, since
a training run may be reading it; a damaged one is as good as none.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import repository
from luthier.artifacts import ManifestError
from luthier.database import Database
from luthier.spec import PreparedSplit, SourceFile
from luthier.storage import Storage

_ROWS = "rows.parquet"


@dataclass(frozen=True)
class Kept:
    """Rows in the cache.

    Attributes:
        facts: `split`, with a storage key for a path and weight 1, and what else was told of them.
    """

    key: str
    storage_key: str
    file_sha256: str
    facts: dict[str, Any]
    size_bytes: int


def storage_key(project_id: str, key: str) -> str:
    """Where the rows of a cache key lie."""
    return f"prepared/{project_id}/{key}"


def find(database: Database, storage: Storage, project_id: str, key: str) -> PreparedSplit | None:
    """The rows of a key, with a storage key for a path; None where there are none, or not whole."""
    with database.reading() as session:
        rows = repository.find_prepared(session, project_id, key)
    if rows is None:
        return None
    try:
        storage.verify(rows.storage_key)
    except ManifestError:
        return None
    return PreparedSplit.model_validate(rows.facts["split"])


def keep(
    storage: Storage,
    project_id: str,
    source: SourceFile,
    *,
    made: Path,
    split: PreparedSplit,
    told: Mapping[str, Any],
) -> Kept:
    """Put rows that a child has made into the cache; what lies there whole already is taken for them.

    Args:
        made: the Parquet file in the run folder.
        told: what else is worth knowing about the rows, as JSON.
    Raises:
        ValueError: the source has no cache key or hash; a defect of ours.
    """
    if source.cache_key is None or source.sha256 is None:
        raise ValueError("a source without a cache key cannot be kept")
    key = storage_key(project_id, source.cache_key)
    folder = made.parent / source.cache_key
    folder.mkdir(exist_ok=True)
    if not (folder / _ROWS).exists():
        os.link(made, folder / _ROWS)
    shared = split.model_copy(update={"path": f"{key}/{_ROWS}", "weight": 1.0})
    manifest = storage.keep_sealed(folder, key, {"split": shared.model_dump(mode="json"), **told})
    return Kept(source.cache_key, key, source.sha256, manifest.meta, manifest.size_bytes)
