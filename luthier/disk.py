"""How much room the disks have, against the two marks of the settings.

Below the low mark nothing new is taken on; from the mark of enough on, what waited for room goes on. Counted
are the storage and the data folder, where database and run folders lie, whichever has less.
"""

from shutil import disk_usage

from luthier.errors import LuthierError
from luthier.installation import Installation


def free_bytes(installation: Installation) -> int:
    """Bytes that can still be written on the fuller one of the disks; a bucket has no end."""
    stored, here = installation.storage.free_bytes(), disk_usage(installation.settings.data).free
    return here if stored is None else min(stored, here)


def has_room(installation: Installation, size_bytes: int = 0) -> bool:
    """Whether `size_bytes` more may be stored; not while the database lives on the room that it held back."""
    has_space = free_bytes(installation) - size_bytes >= installation.settings.low_disk_bytes
    return has_space and not installation.database.reserve_is_spent


def has_enough(installation: Installation) -> bool:
    """Whether what waits for room may go on."""
    return free_bytes(installation) >= installation.settings.enough_disk_bytes


def require_room(installation: Installation, size_bytes: int) -> None:
    """Raises LuthierError `disk_full` where `size_bytes` more may not be stored."""
    if not has_room(installation, size_bytes):
        raise LuthierError(
            f"The server's disk has no room for {size_bytes} bytes: free some space there, or delete files",
            "disk_full",
        )
