"""How much room the disk must keep: below it nothing new is taken and the service is not ready."""

from luthier.errors import LuthierError
from luthier.installation import Installation

MIN_FREE_BYTES = 256 << 20


def has_room(installation: Installation, size_bytes: int = 0) -> bool:
    """Whether `size_bytes` more may be stored; not while the database lives on the room that it held back."""
    has_space = installation.storage.free_bytes() - size_bytes >= MIN_FREE_BYTES
    return has_space and not installation.database.reserve_is_spent


def require_room(installation: Installation, size_bytes: int) -> None:
    """Raises LuthierError `disk_full` where `size_bytes` more may not be stored."""
    if not has_room(installation, size_bytes):
        raise LuthierError(
            f"The server's disk has no room for {size_bytes} bytes: free some space there, or delete files",
            "disk_full",
        )
