"""Checks of this machine: settings, file systems, disk, GPUs and base models."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import disk_usage

from luthier.cli.doctor.finding import Finding, failed, ok, warning
from luthier.cli.terminal import size_of
from luthier.devices import choose_devices, list_gpus
from luthier.errors import LuthierError
from luthier.filesystems import MOUNTS, is_network, is_passing, kind_of
from luthier.settings import GIB, Settings

_LITTLE_BYTES, _TOO_LITTLE_BYTES = 20 * GIB, 2 * GIB


def check_settings(settings: Settings) -> Finding:
    if problems := settings.problems():
        return failed("settings", "; ".join(problems), "see `luthier settings` for every value")
    return ok("settings", "no contradictions")


def check_folders(settings: Settings, mounts: Path = MOUNTS) -> Iterator[Finding]:
    """That folders can be written, have room, and that SQLite lies on a disk of this machine.

    Args:
        mounts: the kernel's table of mounts, in the form of /proc/self/mountinfo.
    """
    folders = {
        "data folder": settings.data,
        "storage folder": settings.storage,
        "model folder": settings.models,
    }
    if settings.s3_bucket is not None:
        del folders["storage folder"]
    for check, folder in folders.items():
        yield _check_folder(check, folder)
    if settings.database.startswith("sqlite"):
        yield _check_file_system(settings, mounts)


def check_devices(settings: Settings) -> Finding:
    gpus = list_gpus()
    try:
        devices = choose_devices(settings.gpus, gpus)
    except LuthierError as error:
        return failed("devices", error.message, "correct LUTHIER_GPUS; `nvidia-smi -L` lists the GPUs")
    if not gpus:
        return ok("devices", "no NVIDIA GPU; training runs on the CPU, which suits small models")
    chosen = ", ".join(f"{device.name} ({size_of(device.memory_bytes)})" for device in devices)
    return ok("devices", chosen)


def _check_folder(check: str, folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not _can_write(existing):
        return failed(
            check, f"{folder} cannot be written", f"give {_user()} the right to write to {existing}"
        )
    free = disk_usage(existing).free
    text = f"{folder}, {size_of(free)} free"
    if free < _TOO_LITTLE_BYTES:
        return failed(check, text, "make room: uploads and checkpoints would fail")
    if free < _LITTLE_BYTES:
        return warning(check, text, "make room before training larger models")
    return ok(check, text)


def _check_file_system(settings: Settings, mounts: Path) -> Finding:
    folder = settings.database_file.parent
    kind = kind_of(folder, mounts)
    if is_network(kind):
        remedy = "put LUTHIER_DATA_DIR on a local disk, or use Postgres (LUTHIER_DATABASE_URL)"
        return failed("file system", f"{folder} lies on {kind}, where SQLite loses data", remedy)
    if is_passing(kind):
        remedy = "put LUTHIER_DATA_DIR on a volume"
        return warning("file system", f"{folder} lies on {kind}: it is gone with its container", remedy)
    return ok("file system", f"{folder} lies on {kind or 'a file system of unknown kind'}")


def _can_write(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _user() -> str:
    return f"user {os.getuid()}" if hasattr(os, "getuid") else "this user"
