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
from luthier.settings import GIB, Settings

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "fuse.sshfs", "fuse.s3fs", "lustre"}
)
_MOUNTS = Path("/proc/self/mountinfo")
_LITTLE_BYTES, _TOO_LITTLE_BYTES = 20 * GIB, 2 * GIB


def check_settings(settings: Settings) -> Finding:
    if problems := settings.problems():
        return failed("settings", "; ".join(problems), "see `luthier settings` for every value")
    return ok("settings", "no contradictions")


def check_folders(settings: Settings, mounts: Path = _MOUNTS) -> Iterator[Finding]:
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
    if settings.database_url is None:
        kind = _file_system_of(settings.data, mounts)
        if kind in NETWORK_FILE_SYSTEMS:
            yield failed(
                "file system",
                f"{settings.data} lies on {kind}, where SQLite loses data",
                "put LUTHIER_DATA_DIR on a local disk, or use Postgres (LUTHIER_DATABASE_URL)",
            )
        else:
            yield ok("file system", f"{settings.data} lies on {kind or 'a file system of unknown kind'}")


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


def _can_write(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _file_system_of(folder: Path, mounts: Path) -> str | None:
    """The type of the file system that holds a folder; None where the kernel does not say."""
    try:
        lines = mounts.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = None
    longest = -1
    for line in lines:
        before, _, after = line.partition(" - ")
        # The kernel writes a blank in a path as \040.
        point = Path(before.split()[4].replace("\\040", " "))
        if folder.is_relative_to(point) and len(point.parts) >= longest:
            found, longest = after.split()[0], len(point.parts)
    return found


def _user() -> str:
    return f"user {os.getuid()}" if hasattr(os, "getuid") else "this user"
