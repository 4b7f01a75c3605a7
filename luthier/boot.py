"""Which start of the machine this is: what ran before another one is surely dead."""

from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id(path: Path = _BOOT_ID) -> str | None:
    """The kernel's name for this start; None where it has none."""
    try:
        return path.read_text(encoding="ascii").strip() or None
    except OSError:
        return None
