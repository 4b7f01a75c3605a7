"""Room on the database's disk that is held back, and given up when the disk is full.

A full disk fails even an UPDATE of one row (measured), so that a job could not be moved out of `running`.
The file is allocated, not only sized; giving it up lets the next transactions through, and whoever makes room
takes it back with `restore`. An empty file says that the room is spent, none that it was never held.
"""

import os
from pathlib import Path
from shutil import disk_usage


class Reserve:
    """One file of `size_bytes` beside a database; a size of 0 holds nothing and is never spent."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path, self.size_bytes = path, size_bytes

    @property
    def is_spent(self) -> bool:
        """Whether the room was given up, so that nothing new should be taken on."""
        held = self._held_bytes()
        return held is not None and held < self.size_bytes

    def release(self) -> bool:
        """Give the room up; returns whether there was any."""
        if not self._held_bytes():
            return False
        os.truncate(self.path, 0)
        return True

    def restore(self) -> bool:
        """Take the room, where as much stays free beside it; returns whether it is held now."""
        if (self._held_bytes() or 0) >= self.size_bytes:
            return True
        if disk_usage(self.path.parent).free < 2 * self.size_bytes:
            return False
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self.size_bytes)
        except OSError:
            os.truncate(descriptor, 0)
            return False
        finally:
            os.close(descriptor)
        return True

    def _held_bytes(self) -> int | None:
        """Bytes of the file; None where there is none."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return None
