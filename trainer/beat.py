"""The sign that a run gets on where it has nothing to report: `alive` in the run folder is touched.

Whoever asks whether to stop does so between steps, between the batches of an evaluation and at each token of
an answer; each time that is a sign of life, put down at most once a second. The supervisor, which looks at
the file's time, ends a run that gives none for too long.
"""

import time
from collections.abc import Callable
from pathlib import Path

_NAME = "alive"
_SECONDS = 1.0


class Beat:
    """Asks whether to stop, and leaves a sign that it was asked."""

    def __init__(
        self, run_folder: Path, should_stop: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path, self._should_stop, self._clock = run_folder / _NAME, should_stop, clock
        self._next_at = 0.0

    def __call__(self) -> bool:
        now = self._clock()
        if now >= self._next_at:
            self._next_at = now + _SECONDS
            self._touch()
        return self._should_stop()

    def _touch(self) -> None:
        try:
            self._path.touch()
        except OSError:
            # On a full or failing disk the run says more itself.
            return
