"""Which kind of file system holds a path, and whether a database may lie there.

SQLite needs locks and shared memory that work, and over a network they do not (sqlite.org/howtocorrupt.html,
section 2.1). The kernel's table of mounts names the kinds; statfs cannot tell two FUSE file systems apart.
"""

from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
# Kinds whose locks or memory maps do not hold between processes. What begins with `fuse.` counts, too.
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "ceph", "glusterfs", "lustre", "gpfs", "fuse"}
)
# Local, but gone with the container that it belongs to.
_PASSING = frozenset({"overlay", "aufs"})


def kind_of(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The kind of the file system that holds a path, such as `ext4`; None where the kernel does not say.

    Args:
        mounts: the kernel's table of mounts, in the form of /proc/self/mountinfo.
    """
    try:
        lines = mounts.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found, longest = None, -1
    for line in lines:
        before, _, after = line.partition(" - ")
        # The kernel writes a blank in a path as \040.
        point = Path(before.split()[4].replace("\\040", " "))
        if path.is_relative_to(point) and len(point.parts) >= longest:
            found, longest = after.split()[0], len(point.parts)
    return found


def is_network(kind: str | None) -> bool:
    """Whether a database file on this kind of file system can be damaged."""
    return kind is not None and (kind in _NETWORK or kind.startswith("fuse."))


def is_passing(kind: str | None) -> bool:
    """Whether what lies on this kind of file system is gone with its container."""
    return kind in _PASSING
