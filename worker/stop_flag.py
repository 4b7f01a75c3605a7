"""The flag by which an agent is told to make room."""

from typing import Protocol


class StopFlag(Protocol):
    """An event of threads or of processes: set once, when an agent shall make room."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool: ...
