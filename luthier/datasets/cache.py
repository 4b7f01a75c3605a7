"""The key of prepared rows: a hash of all that they depend on and of nothing else."""

import hashlib
import json
from pathlib import Path

from luthier import __version__
from luthier.spec import DatasetRequest, SourceFile

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "config.json",
)
_MIXING = frozenset({"files", "columns", "validation_split", "validation_rows"})


def cache_key(
    file_sha256: str, model_folder: Path, source: SourceFile, rules: DatasetRequest, max_seq_length: int
) -> str:
    """Hex SHA-256 over the file's content, how it is read, the model's tokenizer, and the rules.

    Args:
        source: its columns and entry count; where it lies does not.
    """
    files = {name: _sha256(model_folder / name) for name in _TOKENIZER_FILES}
    told = {
        "release": __version__,
        "file": file_sha256,
        "model": files,
        "columns": source.columns,
        "entry": source.entry.model_dump(mode="json") if source.entry else None,
        "rules": rules.model_dump(mode="json", exclude=set(_MIXING)),
        "max_seq_length": max_seq_length,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
