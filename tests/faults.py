"""Commits that fail, before they are sent or after they have happened: what a lost connection looks like.

`failing_commits` changes the engine of one database, below all of our code: the caller gets the driver's own
exception, and on Postgres the connection is gone. Temporal tests its persistence in the same way
("ExecuteAndTimeout").
"""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import psycopg
import pysqlite3

from luthier.database import Database


class Fault(Enum):
    """When a commit fails."""

    BEFORE = "before it is sent"
    AFTER = "after it has happened"


Plan = Callable[[], Fault | None]
"""Asked once for each commit: whether, and how, it fails."""


def at_commit(number: int, fault: Fault) -> Plan:
    """The n-th commit fails, counted from 1."""
    left = iter([*[None] * (number - 1), fault])
    return lambda: next(left, None)


def by_chance(seed: int, probability: float, armed: Callable[[], bool] = lambda: True) -> Plan:
    """Each commit fails with a probability, in either way, as long as `armed` says so."""
    numbers, lock = random.Random(seed), threading.Lock()

    def draw() -> Fault | None:
        if not armed():
            return None
        with lock:
            fails, is_after = numbers.random() < probability, numbers.random() < 0.5
        return (Fault.AFTER if is_after else Fault.BEFORE) if fails else None

    return draw


@contextmanager
def failing_commits(database: Database, plan: Plan) -> Iterator[None]:
    """Have the commits of a database fail as planned."""
    dialect: Any = database.engine.dialect
    commit = dialect.do_commit

    def failing(connection: Any) -> None:
        fault = plan()
        if fault is not Fault.BEFORE:
            commit(connection)
        if fault is not None:
            _break_off(connection, is_sqlite=database.is_sqlite)

    dialect.do_commit = failing
    try:
        yield
    finally:
        dialect.do_commit = commit


def _break_off(connection: Any, *, is_sqlite: bool) -> None:
    if is_sqlite:
        raise pysqlite3.OperationalError("disk I/O error (injected)")
    connection.dbapi_connection.close()
    raise psycopg.OperationalError("server closed the connection unexpectedly (injected)")
