"""A short form of the random run, and the numbers that it is made of."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.brokers import Broker
from tests.chaos.random_run import Plan, RandomRun
from tests.chaos.report import Part, percentile, write_parts
from tests.chaos.schedule import Fault, draw_schedule
from tests.chaos.servers import own_postgres
from tests.chaos.site import Site

SEED = 4
FAULTS = {Fault.KILL_AGENT: 3, Fault.STOP_AGENT: 1, Fault.KILL_TRAINER: 2, Fault.KILL_API: 1}
FAULTS |= {Fault.KILL_DISPATCHER: 1}


@pytest.mark.full
@pytest.mark.timeout(180)
def test_nothing_is_lost_or_done_twice_on_sqlite(make_site: Callable[..., Site]) -> None:
    site = make_site(hosts=("host-0", "host-1"))
    outcome = RandomRun(site, Plan(SEED, 16, FAULTS)).run()
    assert outcome.broken == []
    assert (len(outcome.accepted), Counter(one.fault for one in outcome.happened)) == (16, FAULTS)


@pytest.mark.timeout(180)
def test_nothing_is_lost_or_done_twice_on_postgres(make_site: Callable[..., Site], broker: Broker) -> None:
    faults = FAULTS | {Fault.KILL_REDIS: 1, Fault.FLUSH_REDIS: 1, Fault.STOP_POSTGRES: 1}
    with own_postgres() as postgres:
        site = make_site(database_url=postgres.url, redis_url=broker.url)
        run = RandomRun(site, Plan(SEED, 16, faults), broker=broker, postgres=postgres)
        outcome = run.run()
    assert outcome.broken == []
    assert (len(outcome.accepted), Counter(one.fault for one in outcome.happened)) == (16, faults)


def test_a_seed_draws_the_same_schedule_and_another_seed_another() -> None:
    assert draw_schedule(7, FAULTS) == draw_schedule(7, FAULTS) != draw_schedule(8, FAULTS)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 10), (0.95, 19), (1.0, 20)])
def test_a_percentile_is_one_of_the_values(share: float, expected: float) -> None:
    assert percentile([float(number) for number in range(20, 0, -1)], share) == expected


def test_a_report_changes_its_own_parts_alone(tmp_path: Path) -> None:
    page = tmp_path / "reliability.md"
    page.write_text("# Reliability\n\nBy hand.\n")
    write_parts(page, [Part("a", ["1"]), Part("b", ["2"])])
    page.write_text(page.read_text() + "\nMore by hand.\n")
    write_parts(page, [Part("a", ["3 \\1"])])
    text = page.read_text()
    assert [line in text for line in ("By hand.", "More by hand.", "3 \\1", "2")] == [True] * 4
    assert "\n1\n" not in text
