"""The wish that a run stops, as it comes from outside the process: heard at any time, acted on at a boundary.

It imports nothing heavy, so that a process hears from its first moment on; before that, and only then, the
signal ends it as it ends any program.
"""

import signal
from types import FrameType

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Whether the process has been asked to stop; asking once is enough, asking again changes nothing."""

    def __init__(self) -> None:
        self._is_set = False

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

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        self._is_set = True
