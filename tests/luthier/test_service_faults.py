"""The service's own tests once more, each call in a transaction of its own whose commits fail.

A call that a test makes is done as production does it: its commit may fail before it is sent or after it has
happened, the rows are then read again, and only what is not there is done again. The tests themselves, and
what they expect, are those of the modules below: every state is reached exactly once.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import wraps
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any

import pytest
from sqlalchemy import inspect, literal, select
from sqlalchemy.orm import Session

from luthier.database import CommitUnknownError, Database, _commit
from luthier.tables import Base
from tests.faults import by_chance, failing_commits
from tests.luthier.test_control import *  # noqa: F403
from tests.luthier.test_errands import *  # noqa: F403
from tests.luthier.test_retries import *  # noqa: F403
from tests.luthier.test_service import *  # noqa: F403

_MODULES = [
    import_module(f"luthier.service.{name}")
    for name in (
        "access", "blocking", "claims", "control", "endings", "errands", "files", "jobs", "leadership",
        "outbox", "prepared", "recording", "runs", "sweep", "workers",
    )
]  # fmt: skip
_SEED = int(os.environ.get("LUTHIER_TEST_SEED", "7"))


class _Caller:
    """Makes each outermost call a transaction, and brings it to its end."""

    def __init__(self) -> None:
        self.is_committing = self._is_inside = False
        self.failures = 0

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its commit, and with what a caller does when that fails."""

        @wraps(function)
        def call(session: Session, *arguments: Any, **options: Any) -> Any:
            if self._is_inside:
                return function(session, *arguments, **options)
            # What the test itself has written is not the call's.
            _commit(session)
            before = _digest(session)
            while True:
                result = self._inside(function, session, *arguments, **options)
                if self._commits(session) or _digest(session) != before:
                    return result

        return call

    def _inside(self, function: Callable[..., Any], session: Session, *arguments: Any, **options: Any) -> Any:
        self._is_inside = True
        try:
            result = function(session, *arguments, **options)
            session.flush()
        except BaseException:
            session.rollback()
            raise
        finally:
            self._is_inside = False
        return result

    def _commits(self, session: Session) -> bool:
        """Whether a commit was heard to succeed; the objects of the test stay attached in any case."""
        known = list(session)
        self.is_committing = True
        try:
            _commit(session)
        except CommitUnknownError:
            self.failures += 1
            _attach_again(session, known)
            return False
        finally:
            self.is_committing = False
        return True


@pytest.fixture
def database_url(sqlite_or_long_url: str) -> str:
    """Each kind of database, in the long form of the tests."""
    return sqlite_or_long_url


@pytest.fixture(autouse=True)
def faults(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Caller]:
    """Every call of the service commits, and two in three of those commits fail."""
    caller = _Caller()
    for module in _MODULES:
        for name, function in _calls_of(module):
            monkeypatch.setattr(module, name, caller.guarded(function))
    with failing_commits(database, by_chance(_SEED, 2 / 3, armed=lambda: caller.is_committing)):
        yield caller


def _calls_of(module: ModuleType) -> Iterator[tuple[str, FunctionType]]:
    """The functions of a module that take a session first."""
    for name, value in vars(module).items():
        is_ours = isinstance(value, FunctionType) and value.__module__ == module.__name__
        if is_ours and not name.startswith("_") and value.__code__.co_varnames[:1] == ("session",):
            yield name, value


def _digest(session: Session) -> str:
    """A text that differs when any row does; afterwards the session has no transaction."""
    told = [
        repr(session.execute(select(table).order_by(*table.primary_key)).all())
        for table in Base.metadata.sorted_tables
    ]
    session.rollback()
    return hashlib.sha256("".join(told).encode()).hexdigest()


def _attach_again(session: Session, known: list[Any]) -> None:
    """Give a session its objects back, with what the rows say; those without a row are left out."""
    for each in known:
        state = inspect(each)
        key = zip(state.mapper.primary_key, state.identity or (), strict=True)
        if session.execute(select(literal(1)).where(*(column == value for column, value in key))).first():
            session.add(each)
            session.refresh(each)
    session.rollback()


def test_commits_do_fail_here(session: Session, faults: _Caller) -> None:
    for number in range(20):
        create_job(session, f"ftjob-{number}")  # noqa: F405
    assert faults.failures > 10
    assert session.query(Job).count() == 40  # noqa: F405
