"""A publisher is killed at lines and moments drawn from a seed: readers find what is whole, or nothing.

Half of the deaths are at a drawn line of Python, in our code and in that below it; the other half come from
outside after a drawn time, also within a system call. The long form, marked `full`, kills a thousand times.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from luthier.artifacts import ManifestError, seal
from luthier.storage import FileStorage, Storage
from tests.luthier.storage.conftest import PART_BYTES
from tests.s3 import S3Server

_SEED = 20
# What lies under the key before each action, and what may lie there after its death.
_ACTIONS = {
    ("put", None): {None, "new"},
    ("put", "old"): {None, "old", "new"},
    ("keep", None): {None, "new"},
    ("keep", "damaged"): {None, "damaged", "new"},
    ("delete", "old"): {None, "old"},
}


class Publisher:
    """The publishing process, and the storage that it shares with the test."""

    def __init__(self, storage: Storage, told: dict[str, Any], folder: Path) -> None:
        self.storage, self._lines = storage, folder / "lines"
        command = [sys.executable, "-m", "tests.luthier.storage.publisher"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._tell(told)

    def end(self) -> None:
        """Have the process end, as it does when nobody tells it anything more."""
        self._process.communicate(timeout=30)

    def run(self, action: str, source: Path, key: str, die_at_line: int = 0, die_after: float = 0) -> int:
        """Have a child do one action; returns its exit code, negative for a signal."""
        command = {"action": action, "source": str(source), "key": key, "lines": str(self._lines)}
        self._tell(command | {"die_at_line": die_at_line, "die_after": die_after})
        return int(self._process.stdout.readline())  # type: ignore[union-attr]

    def line_count(self) -> int:
        """Lines of Python that the last action took which came to its end."""
        return int(self._lines.read_text(encoding="ascii"))

    def _tell(self, command: dict[str, Any]) -> None:
        print(json.dumps(command), file=self._process.stdin, flush=True)


@pytest.fixture(params=["files", "s3"])
def publisher(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Publisher]:
    """A publisher for each kind of storage."""
    told: dict[str, Any] = {"root": str(tmp_path / "storage")}
    storage: Storage = FileStorage(tmp_path / "storage")
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        prefix = f"test-{os.urandom(6).hex()}"
        told = {"settings": server.plain_settings(prefix), "prefix": f"{prefix}/", "part_bytes": PART_BYTES}
        told["spool"] = str(tmp_path / "spool")
        storage = server.storage(tmp_path / "spool", prefix, PART_BYTES)
    publisher = Publisher(storage, told, tmp_path)
    yield publisher
    publisher.end()


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """Sealed folders by who made them.

    `large` has a file that goes to S3 in parts; `kept` is for who seals it anew and may die meanwhile.
    """
    return {name: _make(tmp_path / name, name) for name in ("old", "new", "large", "kept")}


def _make(folder: Path, name: str) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "a.bin").write_bytes(name.encode() * 50_000)
    (folder / "sub" / "b.bin").write_bytes(name.encode() * 1000)
    if name == "large":
        (folder / "parts.bin").write_bytes(b"0123456789abcdef" * (PART_BYTES // 16 + 1))
    seal(folder, {"made_by": "old" if name == "old" else "new"})
    return folder


def test_no_death_while_publishing_leaves_a_torn_folder(
    publisher: Publisher, sources: dict[str, Path], tmp_path: Path
) -> None:
    is_quick = isinstance(publisher.storage, FileStorage)
    _kill(publisher, sources, 100 if is_quick else 20, tmp_path)


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_no_death_of_a_thousand_leaves_a_torn_folder(
    publisher: Publisher, sources: dict[str, Path], tmp_path: Path
) -> None:
    _kill(publisher, sources, 1000, tmp_path)


def _kill(publisher: Publisher, sources: dict[str, Path], count: int, tmp_path: Path) -> None:
    """Kill so many publishers, look after each, and see that the next one succeeds."""
    rng, storage = random.Random(_SEED), publisher.storage
    actions = list(_ACTIONS.items())
    costs = {name: _costs(publisher, sources, *name, tmp_path) for name, _ in actions}
    deaths = 0
    for number in range(count):
        (action, before), may_be = actions[number % len(actions)]
        source = sources["kept" if action == "keep" else "large" if rng.random() < 0.1 else "new"]
        key = f"ftjob-{number}/e0001/folder"
        _lay(storage, sources, key, before, tmp_path)
        lines, seconds = costs[action, before]
        if number % 2:
            code = publisher.run(action, source, key, die_at_line=rng.randint(1, lines))
        else:
            code = publisher.run(action, source, key, die_after=rng.uniform(0.0005, seconds))
        deaths += code < 0
        seen = _look(storage, key, before)
        assert seen in may_be, f"death {number} of {action} over {before}: {seen} (seed {_SEED})"
        if action == "delete":
            storage.delete(key)
        else:
            assert publisher.run(action, source, key) == 0
        assert _look(storage, key, before) == (None if action == "delete" else "new")
        storage.delete(key)
    assert deaths > count * 0.6
    later, hour = datetime.now(UTC) + timedelta(days=1), timedelta(hours=1)
    storage.clean_temporary(now=later, older_than=hour)
    assert (list(storage.list_files()), storage.list_temporary(now=later, older_than=hour)) == ([], [])


def _costs(
    publisher: Publisher, sources: dict[str, Path], action: str, before: str | None, tmp_path: Path
) -> tuple[int, float]:
    """Lines and seconds that an action takes to its end."""
    key = "ftjob-measured/e0001/folder"
    _lay(publisher.storage, sources, key, before, tmp_path)
    assert publisher.run(action, sources["kept"], key) == 0
    lines = publisher.line_count()
    publisher.storage.delete(key)
    _lay(publisher.storage, sources, key, before, tmp_path)
    start = time.perf_counter()
    assert publisher.run(action, sources["kept"], key, die_after=60) == 0
    seconds = time.perf_counter() - start
    publisher.storage.delete(key)
    return lines, seconds


def _lay(storage: Storage, sources: dict[str, Path], key: str, before: str | None, tmp_path: Path) -> None:
    """What an action finds."""
    if before is not None:
        storage.put_folder(sources["old"], key)
    if before == "damaged":
        (tmp_path / "other").write_bytes(b"other")
        storage.put(tmp_path / "other", f"{key}/a.bin")


def _look(storage: Storage, key: str, before: str | None) -> str | None:
    """Who made what a reader finds under a key; `torn` where it is not whole, and was before."""
    try:
        made_by = str(storage.manifest(key).meta["made_by"])
    except ManifestError:
        is_visible = isinstance(storage, FileStorage) and storage.path(key).exists()
        return "torn" if is_visible else None
    try:
        storage.verify(key)
    except ManifestError:
        return "damaged" if (before, made_by) == ("damaged", "old") else "torn"
    return made_by
