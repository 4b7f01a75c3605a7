"""The beginning of a stored file, for code that reads files of this machine."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.storage import Storage


@contextmanager
def head_of(storage: Storage, key: str, most_bytes: int) -> Iterator[Path]:
    """A path with the first bytes of a stored file, at least so many where it has them.

    What is behind them may be there or not. The path is good for the block alone.
    """
    with tempfile.TemporaryDirectory(prefix="luthier-head-") as folder:
        yield storage.fetch_head(key, Path(folder) / "head", most_bytes)
