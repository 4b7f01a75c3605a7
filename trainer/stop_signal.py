"""The wish that a run stops, as it comes from outside the process: heard at any time, acted on at a boundary.

It imports nothing heavy, so that a process hears from its first moment on; before that, and only then, the
signal ends it as it ends any program. A second SIGTERM ends it at once, without saving, as whoever sends it
has waited long enough.
"""

import os
import signal
import time
from types import FrameType

from luthier.errors import ExitCode

_NUMBERS = (signal.SIGTERM, signal.SIGINT)
# What comes closer together is one wish: a terminal, or a service manager, tells parent and child alike.
_SAME_WISH_SECONDS = 0.5


class StopSignal:
    """Whether the process has been asked to stop."""

    def __init__(self) -> None:
        self._is_set = False
        self._told_at: float | None = None

    def listen(self) -> None:
        """Hear SIGTERM and SIGINT from now on."""
        for number in _NUMBERS:
            signal.signal(number, self._receive)

    def ignore(self) -> None:
        """Let them pass: Python gives signals that it handles their default back as it ends, which kills."""
        for number in _NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    def __call__(self) -> bool:
        return self._is_set

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        self._is_set = True
        if number != signal.SIGTERM:
            return
        if self._told_at is not None and now - self._told_at >= _SAME_WISH_SECONDS:
            os._exit(ExitCode.STOPPED)
        self._told_at = self._told_at or now
