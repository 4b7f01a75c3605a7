"""Where things lie in a backup, and the facts about it that its manifest carries.

```
MANIFEST.json          size and SHA-256 of every file, and `Facts`
database/jobs.jsonl.zst    one table each, see `rows`
files/<storage key>    what the rows speak of
keys/installation.key  unless LUTHIER_SECRET_KEY is the key
```
"""

import hashlib
import hmac
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.artifacts import ManifestError

FORMAT = 1
DATABASE, FILES, KEYS = "database", "files", "keys"
KEY_FILE = f"{KEYS}/installation.key"


@dataclass(frozen=True)
class Facts:
    """What a backup is.

    Attributes:
        made_at: in UTC, ISO 8601.
        revision: of the schema that the rows have.
        row_counts: by table.
        has_files: False where only rows and key were taken, before an upgrade.
        missing: storage keys that rows speak of and whose bytes are not here: left out by wish, or deleted
            while the backup was made.
        key_fingerprint: tells whether a key is the one that the stored hashes of API keys were made with.
    """

    made_at: str
    version: str
    revision: str
    row_counts: dict[str, int]
    has_files: bool
    key_fingerprint: str
    missing: list[str] = field(default_factory=list)
    format: int = FORMAT


def facts_of(meta: dict[str, Any], folder: Path) -> Facts:
    """The facts that a manifest carries.

    Raises:
        ManifestError: it is not that of a backup that this release can read.
    """
    try:
        facts = Facts(**meta)
    except TypeError as error:
        raise ManifestError(f"{folder} is no backup of Luthier") from error
    if facts.format != FORMAT:
        raise ManifestError(f"{folder} has format {facts.format}: restore it with the release that made it")
    return facts


def fingerprint(installation_key: bytes) -> str:
    """A text that differs for different keys and does not help to find one."""
    return hmac.new(installation_key, b"luthier backup", hashlib.sha256).hexdigest()[:16]
