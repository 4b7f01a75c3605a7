"""How fast files are validated, beside the `datasets` library doing the same in the same run.

    python bench/data.py [--megabytes 100] [--repeats 3] [--json results.json]

The file holds generated chat rows of about 1 kB in JSON Lines. `datasets` loads it and checks roles and
contents in a map, the nearest that it has: it finds no duplicates, no odd characters and no lost keys,
and names no lines. Both run on one core, offline, on a file that the page cache holds.
"""

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

import datasets

from luthier.datasets.validate import validate_file

ROLES = frozenset({"system", "user", "assistant"})
_WORDS = 5000


@dataclass(frozen=True)
class Result:
    """What one tool did with one file.

    Attributes:
        seconds: wall time of the fastest repeat.
        cpu_seconds: processor time of the repeat that took the least of it.
    """

    what: str
    seconds: float
    cpu_seconds: float
    megabytes_per_second: float
    rows_per_second: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=100, help="size of the generated file")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest one counts")
    parser.add_argument("--json", type=Path, help="where to write the results too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = validation(Path(folder), arguments.megabytes, arguments.repeats)
    about = machine()
    print(json.dumps(about))
    show(results)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": about, "results": [asdict(item) for item in results]})
        )


def validation(folder: Path, megabytes: int, repeats: int) -> list[Result]:
    """Ours and theirs on one file."""
    path = folder / "rows.jsonl"
    row_count = write_chat_rows(path, megabytes * 1_000_000)
    size = path.stat().st_size

    def ours() -> None:
        report = validate_file(path, path.name)
        if not report.valid or report.row_count != row_count:
            sys.exit(f"the generated file is not valid: {report.errors[:3]}")

    def theirs() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
            checked = rows.map(_check_batch, batched=True, remove_columns=rows.column_names)
            if len(checked) != row_count or not all(checked["is_valid"]):
                sys.exit("datasets found invalid rows in the generated file")

    datasets.disable_progress_bars()
    return [
        measured("luthier validate_file", ours, size, row_count, repeats),
        measured("datasets load_dataset + map", theirs, size, row_count, repeats),
    ]


def _check_batch(batch: dict[str, list[Any]]) -> dict[str, list[bool]]:
    return {"is_valid": [_is_conversation(messages) for messages in batch["messages"]]}


def _is_conversation(messages: list[dict[str, Any]]) -> bool:
    return messages[-1]["role"] == "assistant" and all(
        message["role"] in ROLES and isinstance(message["content"], str) and message["content"].strip()
        for message in messages
    )


def measured(what: str, work: Callable[[], None], size: int, row_count: int, repeats: int) -> Result:
    """Run something some times and keep the best."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    best = min(cpus)
    return Result(what, min(walls), best, size / best / 1e6, row_count / best)


def write_chat_rows(path: Path, size: int) -> int:
    """Chat rows of about 1 kB (system, user, assistant) of made-up words; how many there are."""
    chance = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(_WORDS)]
    words += [word + mark for word in words[:300] for mark in (",\n", ".", ' "so"', ": \u00e9")]
    row_count = 0
    with path.open("wb") as file:
        while file.tell() < size:
            turns = zip(("system", "user", "assistant"), (12, 40, 85), strict=True)
            messages = [
                {"role": role, "content": " ".join(chance.choices(words, k=count))} for role, count in turns
            ]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n")
            row_count += 1
    return row_count


def machine() -> dict[str, str]:
    """Where this was measured, and with what."""
    names = ("msgspec", "orjson", "pyarrow", "datasets")
    models = (
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    )
    return {
        "processor": next(models, platform.processor()).partition(": ")[2],
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
    } | {name: version(name) for name in names}


def show(results: list[Result]) -> None:
    """A table; ratios are to the last line."""
    print(f"{'what':32} {'cpu s':>8} {'wall s':>8} {'MB/s':>8} {'rows/s':>10} {'ratio':>7}")
    for item in results:
        ratio = results[-1].cpu_seconds / item.cpu_seconds
        print(
            f"{item.what:32} {item.cpu_seconds:8.2f} {item.seconds:8.2f} {item.megabytes_per_second:8.1f} "
            f"{item.rows_per_second:10.0f} {ratio:6.1f}x"
        )


if __name__ == "__main__":
    main()
