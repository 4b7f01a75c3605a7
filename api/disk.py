"""How much room the disk must keep: below it nothing new is taken and the service is not ready."""

from luthier.errors import LuthierError
from luthier.storage import Storage

MIN_FREE_BYTES = 256 << 20


def has_room(storage: Storage, size_bytes: int = 0) -> bool:
    """Whether `size_bytes` more may be stored; always, where the storage has no end."""
    free = storage.free_bytes()
    return free is None or free - size_bytes >= MIN_FREE_BYTES


def require_room(storage: Storage, size_bytes: int) -> None:
    """Raises LuthierError `disk_full` where `size_bytes` more may not be stored."""
    if not has_room(storage, size_bytes):
        raise LuthierError(
            f"The server's disk has no room for {size_bytes} bytes: free some space there, or delete files",
            "disk_full",
        )
