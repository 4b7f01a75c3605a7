"""The sums of requests: those of one minute add up, and those of another are forgotten."""

from luthier.database import Database
from luthier.service import access, request_counts
from tests.factories import CALLER, NOW


def test_requests_add_up_within_a_minute(database: Database) -> None:
    with database.transaction() as session:
        access.ensure_project(session, now=NOW)
        told = [
            request_counts.add(session, CALLER, minute=minute, count=count)
            for minute, count in ((1, 5), (1, 2), (2, 3))
        ]
        assert told == [5, 7, 3]
    with database.reading() as session:
        found = [request_counts.find(session, CALLER.api_key_id, minute=minute) for minute in (1, 2)]
        assert (found, request_counts.find(session, "key-other", minute=2)) == ([0, 3], 0)
