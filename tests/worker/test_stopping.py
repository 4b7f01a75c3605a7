"""Which signals a child gets, and when: by a clock that is told."""

from signal import SIGABRT, SIGCONT, SIGKILL, SIGTERM, Signals

import pytest

from luthier.settings import Settings
from worker.stopping import Ending, Reason


@pytest.fixture
def ending() -> Ending:
    """The end of a child that has 20 s after a cancel, twice, and else 120 s."""
    return Ending(Settings(cancel_grace_seconds=20, stop_grace_seconds=120))


def _told(ending: Ending, times: list[float]) -> list[tuple[float, Signals]]:
    return [(now, number) for now in times for number in ending.due(now)]


@pytest.mark.parametrize(
    ("reason", "signals"),
    [
        (Reason.CANCEL, [(0, SIGTERM), (20, SIGTERM), (40, SIGKILL)]),
        (Reason.PAUSE, [(0, SIGTERM), (120, SIGKILL)]),
        (Reason.DRAIN, [(0, SIGTERM), (120, SIGKILL)]),
        (Reason.HUNG, [(0, SIGABRT), (0, SIGCONT), (20, SIGTERM), (40, SIGKILL)]),
        (Reason.HOST_MEMORY, [(0, SIGKILL)]),
    ],
)
def test_a_reason_has_its_signals(
    ending: Ending, reason: Reason, signals: list[tuple[float, Signals]]
) -> None:
    ending.want(reason, 0)
    assert _told(ending, [0, 19.9, 20, 39.9, 40, 119.9, 120, 999]) == signals


def test_nothing_is_sent_without_a_reason(ending: Ending) -> None:
    assert (_told(ending, [0, 999]), ending.reason, ending.killed_at) == ([], None, None)


def test_wanting_the_same_again_changes_nothing(ending: Ending) -> None:
    ending.want(Reason.CANCEL, 0)
    assert ending.due(0) == [SIGTERM]
    ending.want(Reason.CANCEL, 10)
    assert _told(ending, [19, 20]) == [(20, SIGTERM)]


def test_a_cancel_while_a_pause_is_carried_out_lets_it_save_for_its_own_grace(ending: Ending) -> None:
    ending.want(Reason.PAUSE, 0)
    assert ending.due(0) == [SIGTERM]
    ending.want(Reason.CANCEL, 5)
    assert _told(ending, [5, 24, 25, 44, 45]) == [(25, SIGTERM), (45, SIGKILL)]
    assert ending.killed_at == 45


def test_a_less_urgent_reason_changes_nothing(ending: Ending) -> None:
    ending.want(Reason.CANCEL, 0)
    ending.want(Reason.DRAIN, 1)
    assert ending.reason == Reason.CANCEL
