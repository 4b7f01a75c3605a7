"""Prepared examples of one file, read by number without being held in memory.

`open_rows` decodes the Parquet once, in batches, into an uncompressed Arrow file and maps that: a row is
then two views into the page cache. The Arrow file is unlinked as soon as it is mapped, so nothing is left to
clean. The file format is `luthier.spec.PreparedSplit`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from luthier import artifacts
from luthier.errors import ExitCode, JobFailure
from luthier.spec import END_ID_KEY, END_MARK, PreparedSplit

IGNORED_LABEL = -100
_COLUMNS = {"input_ids": pa.int32(), "loss_mask": pa.uint8()}
_ROWS_PER_BATCH = 4096


@dataclass(frozen=True)
class _Block:
    """Some consecutive rows: flat values, and where each row begins in them."""

    ids: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray


class Rows:
    """Examples by number, from 0.

    Attributes:
        max_token_id: the largest id in the file, which must lie in the model's vocabulary.
        end_token_id: the label where the mask has END_MARK.
    """

    def __init__(self, blocks: list[_Block], max_token_id: int, end_token_id: int) -> None:
        self.blocks, self.end_token_id = blocks, end_token_id
        self._starts = np.cumsum([0] + [len(block.offsets) - 1 for block in blocks])
        self.max_token_id = max_token_id

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every row, int64 [n]."""
        return np.concatenate([np.diff(block.offsets) for block in self.blocks]).astype(np.int64)

    @cached_property
    def target_counts(self) -> np.ndarray:
        """Tokens of every row that are learnt, int64 [n]; the first of a row never is."""
        return np.concatenate([_targets(block) for block in self.blocks])

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (int32 [n]) and loss mask (uint8 [n]) of a row; views, not to be written to."""
        index = int(np.searchsorted(self._starts, number, side="right")) - 1
        block = self.blocks[index]
        row = number - int(self._starts[index])
        span = slice(block.offsets[row], block.offsets[row + 1])
        return block.ids[span], block.mask[span]

    def labels(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """What the model learns in the place of each token, int64 [n]; IGNORED_LABEL for nothing."""
        learnt = np.where(mask == 1, ids, IGNORED_LABEL)
        return np.where(mask == END_MARK, self.end_token_id, learnt)


def _targets(block: _Block) -> np.ndarray:
    starts = block.offsets[:-1]
    is_target = block.mask[: block.offsets[-1]] > 0
    return np.add.reduceat(is_target, starts, dtype=np.int64) - is_target[starts]


def joined(files: Sequence[Rows]) -> Rows:
    """The rows of several files as those of one, in their order."""
    blocks = [block for rows in files for block in rows.blocks]
    return Rows(blocks, max(rows.max_token_id for rows in files), files[0].end_token_id)


def open_rows(split: PreparedSplit, scratch: Path, param: str) -> Rows:
    """Check a prepared file against its record and open it.

    Args:
        scratch: a folder on a local disk with room for the decoded file (5 bytes a token).
        param: what the user knows the file as, for messages.
    Raises:
        JobFailure: the file is missing, is not the one that was prepared, or holds no usable rows.
    """
    path = Path(split.path)
    if not path.is_file():
        raise _bad(f"The prepared data is missing: {path.name}. Retry the job", param, ExitCode.MISSING)
    if artifacts.sha256_of(path) != split.sha256:
        raise _bad(f"{path.name} is not the file that was prepared: its SHA-256 differs", param)
    try:
        table = _map(path, scratch)
    except pa.ArrowInvalid as error:
        raise _bad(f"{path.name} is not readable as Parquet: {error}", param) from error
    if table.num_rows != split.row_count or table.num_rows == 0:
        raise _bad(f"{path.name} has {table.num_rows} rows where {split.row_count} were prepared", param)
    blocks = [_block(batch, path.name, param) for batch in table.to_batches()]
    largest = pc.max(pc.list_flatten(table["input_ids"])).as_py()
    return Rows(blocks, largest, _end_token_id(path))


def _map(path: Path, scratch: Path) -> pa.Table:
    """Decode a Parquet file into a mapped Arrow table, never holding more than a batch."""
    source = pq.ParquetFile(path, memory_map=True)
    schema = source.schema_arrow
    for name, value_type in _COLUMNS.items():
        found = schema.field(name).type if name in schema.names else None
        if found is None or not pa.types.is_list(found) or found.value_type != value_type:
            raise pa.ArrowInvalid(f"column {name} should be list<{value_type}> and is {found}")
    scratch.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=scratch, suffix=".arrow") as file:
        wanted = pa.schema([schema.field(name) for name in _COLUMNS])
        with pa.OSFile(file.name, "wb") as sink, pa.ipc.new_file(sink, wanted) as writer:
            for batch in source.iter_batches(_ROWS_PER_BATCH, columns=list(_COLUMNS)):
                writer.write_batch(batch)
        return pa.ipc.open_file(pa.memory_map(file.name)).read_all()


def _end_token_id(path: Path) -> int:
    """IGNORED_LABEL where the file names none."""
    metadata = pq.read_schema(path).metadata or {}
    return int(metadata.get(END_ID_KEY.encode(), IGNORED_LABEL))


def _block(batch: pa.RecordBatch, name: str, param: str) -> _Block:
    ids, mask = batch["input_ids"], batch["loss_mask"]
    offsets = ids.offsets.to_numpy()
    if ids.null_count or mask.null_count or not np.array_equal(offsets, mask.offsets.to_numpy()):
        raise _bad(f"{name} has a row whose input_ids and loss_mask differ in length", param)
    if np.any(np.diff(offsets) == 0):
        raise _bad(f"{name} has a row without tokens", param)
    return _Block(ids.values.to_numpy(), mask.values.to_numpy(), offsets)


def _bad(message: str, param: str, exit_code: ExitCode = ExitCode.BAD_DATA) -> JobFailure:
    return JobFailure(message, f"invalid_{param}", exit_code, param)
