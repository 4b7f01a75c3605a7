"""When leases that look lost are believed to be. A lease lasts 100 seconds here."""

import pytest

from worker.caution import Caution


@pytest.fixture
def caution() -> Caution:
    """One that is past its first lease."""
    caution = Caution(100)
    assert caution.is_quiet(0)
    return caution


def _lost(count: int, *, first: int = 0, epoch: int = 1) -> list[tuple[str, int]]:
    return [(f"ftjob-{number}", epoch) for number in range(first, first + count)]


def test_nothing_is_believed_for_one_lease_from_the_first_look_on() -> None:
    caution = Caution(100)
    assert [caution.is_quiet(at) for at in (5000, 5099, 5100)] == [True, True, False]


def test_after_an_alarm_the_same_lease_of_time_passes_again(caution: Caution) -> None:
    assert not caution.is_quiet(100)
    caution.alarm()
    assert [caution.is_quiet(at) for at in (150, 249, 250)] == [True, True, False]


@pytest.mark.parametrize(
    ("lost", "leased", "believed"), [(3, 3, True), (4, 4, False), (30, 100, True), (31, 100, False)]
)
def test_few_are_believed_at_once(caution: Caution, lost: int, leased: int, believed: bool) -> None:
    assert caution.believes(_lost(lost), leased, 200) == believed


def test_many_are_believed_when_they_are_still_lost_a_lease_later(caution: Caution) -> None:
    looks = [caution.believes(_lost(50), 50, at) for at in (200, 215, 299, 300)]
    assert looks == [False, False, False, True]


def test_many_others_are_not_believed_for_the_age_of_the_first(caution: Caution) -> None:
    assert not caution.believes(_lost(50), 100, 200)
    assert not caution.believes(_lost(50, first=50), 100, 300)


def test_a_job_that_was_claimed_and_lost_again_is_lost_anew(caution: Caution) -> None:
    assert not caution.believes(_lost(50), 100, 200)
    assert not caution.believes(_lost(50, epoch=2), 100, 300)


def test_an_alarm_forgets_what_was_seen(caution: Caution) -> None:
    assert not caution.believes(_lost(50), 50, 200)
    caution.alarm()
    assert not caution.believes(_lost(50), 50, 300)


def test_a_few_new_ones_do_not_save_those_that_are_long_lost(caution: Caution) -> None:
    assert not caution.believes(_lost(50), 100, 200)
    assert caution.believes(_lost(53), 100, 300)
