"""Why a child is made to end, and the signals that it gets for it, one after the other.

A child that is asked saves first; a second SIGTERM ends it without saving; SIGKILL ends all that it started.
Pure but for the settings: the caller tells the time and sends the signals.
"""

from dataclasses import dataclass
from enum import StrEnum
from signal import Signals

from luthier.settings import Settings


class Reason(StrEnum):
    """Why a child is made to end, the more urgent the further down."""

    DRAIN = "drain"
    PAUSE = "pause"
    CANCEL = "cancel"
    SILENT = "silent"
    HUNG = "hung"
    HOST_MEMORY = "host_memory"
    DISK_FULL = "disk_full"


_URGENCY = {reason: number for number, reason in enumerate(Reason)}
# These make room at the wish of somebody: the run did nothing wrong.
WISHES = frozenset({Reason.DRAIN, Reason.PAUSE, Reason.CANCEL})


@dataclass(frozen=True)
class _Step:
    """A signal that is due so many seconds after the reason was given."""

    seconds: float
    signal: Signals


class Ending:
    """How the end of one child goes on.

    Attributes:
        reason: the most urgent that there was; None as long as the child may run.
        killed_at: when SIGKILL was due, by the caller's clock.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._left: list[_Step] = []
        self._since = 0.0
        self._was_asked = False
        self.reason: Reason | None = None
        self.killed_at: float | None = None

    def want(self, reason: Reason, now: float) -> None:
        """Have the child end from now on; a less urgent reason than the one there is changes nothing."""
        if self.reason is not None and _URGENCY[reason] <= _URGENCY[self.reason]:
            return
        steps = _steps(reason, self._settings)
        if self._was_asked and steps[0].signal == Signals.SIGTERM:
            # It is saving: the next SIGTERM would end that, and comes when its time has come.
            steps = steps[1:]
        self.reason, self._since, self._left = reason, now, steps

    def due(self, now: float) -> list[Signals]:
        """The signals to send now; each is told once."""
        signals = [step.signal for step in self._left if now - self._since >= step.seconds]
        self._left = self._left[len(signals) :]
        self._was_asked = self._was_asked or Signals.SIGTERM in signals
        if Signals.SIGKILL in signals and self.killed_at is None:
            self.killed_at = now
        return signals


def _steps(reason: Reason, settings: Settings) -> list[_Step]:
    grace = settings.cancel_grace_seconds
    match reason:
        case Reason.DRAIN | Reason.PAUSE:
            return [_Step(0, Signals.SIGTERM), _Step(settings.stop_grace_seconds, Signals.SIGKILL)]
        case Reason.CANCEL:
            twice = [_Step(0, Signals.SIGTERM), _Step(grace, Signals.SIGTERM)]
            return [*twice, _Step(2 * grace, Signals.SIGKILL)]
        case Reason.SILENT | Reason.HUNG:
            # SIGABRT has Python write where each thread stands; a stopped process hears nothing before it
            # is continued.
            told = [_Step(0, Signals.SIGABRT), _Step(0, Signals.SIGCONT)]
            return [*told, _Step(grace, Signals.SIGTERM), _Step(2 * grace, Signals.SIGKILL)]
        case Reason.HOST_MEMORY:
            return [_Step(0, Signals.SIGKILL)]
        case Reason.DISK_FULL:
            return [_Step(0, Signals.SIGTERM), _Step(grace, Signals.SIGKILL)]
