"""What hangs and what is only slow: by a clock that is told."""

import pytest

from luthier.status import Phase
from worker.watchdog import Watchdog


def _watched(phase: str, *, step_seconds: float, steps: int = 10) -> tuple[Watchdog, float]:
    """A run that has given signs at a pace, and when it gave the last one."""
    watchdog, now = Watchdog(900, 0), 0.0
    for _ in range(steps + 1):
        now += step_seconds
        watchdog.note_sign(Phase.TRAINING, now)
    watchdog.note_sign(phase, now)
    return watchdog, now


def test_a_run_without_a_step_for_the_limit_hangs() -> None:
    watchdog, now = _watched(Phase.TRAINING, step_seconds=1)
    assert [watchdog.hangs(now + seconds) for seconds in (899, 901)] == [False, True]


def test_a_run_of_long_steps_has_twenty_of_them() -> None:
    watchdog, now = _watched(Phase.TRAINING, step_seconds=100)
    assert [watchdog.hangs(now + seconds) for seconds in (1999, 2001)] == [False, True]


def test_one_that_spins_between_steps_hangs_all_the_same() -> None:
    watchdog, now = _watched(Phase.TRAINING, step_seconds=1)
    watchdog.note_cpu(5000, now + 900)
    assert watchdog.hangs(now + 901)


def test_an_evaluation_of_any_length_goes_on_as_long_as_its_batches_do() -> None:
    watchdog, now = _watched(Phase.EVALUATING, step_seconds=1)
    for batch in range(100):
        watchdog.note_sign(Phase.EVALUATING, now + 600 * batch)
    assert not watchdog.hangs(now + 600 * 99 + 800)


@pytest.mark.parametrize("phase", [Phase.LOADING_MODEL, Phase.SAVING, None])
def test_what_gives_no_signs_lives_as_long_as_it_uses_the_processor(phase: Phase | None) -> None:
    watchdog = Watchdog(900, 0)
    watchdog.note_sign(phase, 1)
    watchdog.note_cpu(100, 3000)
    assert [watchdog.hangs(seconds) for seconds in (3899, 3901)] == [False, True]


def test_a_first_step_is_given_the_time_that_it_computes() -> None:
    watchdog = Watchdog(900, 0)
    watchdog.note_sign(Phase.TRAINING, 1)
    watchdog.note_cpu(100, 5000)
    assert not watchdog.hangs(5800)


def test_a_stopped_process_hangs_in_any_phase() -> None:
    watchdog = Watchdog(900, 0)
    watchdog.note_cpu(0.8, 800)
    assert watchdog.hangs(901)
