"""Whether a child still gets on: the time since its last sign of life, against what is usual for it.

Signs are events, and the beats of a trainer: it touches `alive` in its run folder between steps, between the
batches of an evaluation and at each token of an answer. Where neither is to be expected (a model is loaded, a
first step is compiled, a checkpoint is written) the use of the processor is a sign as well. Pure: times come
from the caller.
"""

from collections import deque
from statistics import median

from luthier.status import Phase

ALIVE_NAME = "alive"
# From this many gaps on, a phase is known to give signs.
_KNOWN_GAPS = 3
_REMEMBERED_GAPS = 200
_LONG_FACTOR = 20
_COUNTED = frozenset({Phase.TRAINING, Phase.EVALUATING})
# Less use of the processor than this share of the time is that of threads which wake up to wait on.
_BUSY_RATIO = 0.001


class Watchdog:
    """Watches one child.

    Args:
        hang_seconds: without a sign for so long, or for 20 times the usual gap where that is more, it hangs.
        now: when the child was started.
    """

    def __init__(self, hang_seconds: float, now: float) -> None:
        self._hang_seconds = hang_seconds
        self._sign_at = now
        self._busy_at, self._cpu_seconds = now, 0.0
        self._phase: str | None = None
        self._gaps: deque[float] = deque(maxlen=_REMEMBERED_GAPS)

    def note_sign(self, phase: str | None, now: float) -> None:
        """The child has reported something, or beaten, and is in a phase by now."""
        if self._phase == phase == Phase.TRAINING:
            self._gaps.append(now - self._sign_at)
        self._phase, self._sign_at = phase, now

    def note_cpu(self, cpu_seconds: float, now: float) -> None:
        """The child has used the processor for so long in all."""
        if cpu_seconds - self._cpu_seconds >= _BUSY_RATIO * self._hang_seconds:
            self._busy_at, self._cpu_seconds = now, cpu_seconds

    def hangs(self, now: float) -> bool:
        """Whether there was no sign for too long."""
        last = self._sign_at if self._gives_signs() else max(self._sign_at, self._busy_at)
        return now - last > self._allowed_seconds()

    def _gives_signs(self) -> bool:
        """Whether events and beats are to be expected at the moment."""
        return self._phase in _COUNTED and len(self._gaps) >= _KNOWN_GAPS

    def _allowed_seconds(self) -> float:
        usual = median(self._gaps) if self._gaps else 0.0
        return max(self._hang_seconds, _LONG_FACTOR * usual)
