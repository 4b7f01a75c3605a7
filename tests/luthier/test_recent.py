"""Answers that may be a moment old: when they are read again, and by whom."""

from threading import Event, Thread

from sqlalchemy.orm import Session

from luthier.database import Database
from luthier.service.recent import Recent


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_answer_holds_for_a_second_and_for_one_thing(database: Database) -> None:
    clock, numbers = _Clock(), iter(range(9))
    recent: Recent[int] = Recent(clock)
    with database.reading() as session:

        def get(about: str) -> int:
            return recent.get(session, lambda: next(numbers), about=about)

        assert [get("a"), get("a"), get("b")] == [0, 0, 1]
        clock.now += 0.99
        assert [get("a"), get("b")] == [0, 1]
        clock.now += 0.01
        assert [get("b"), get("a")] == [2, 3]


def test_what_takes_long_is_read_less_often(database: Database) -> None:
    clock, numbers = _Clock(), iter(range(9))
    recent: Recent[int] = Recent(clock)

    def read() -> int:
        clock.now += 0.5
        return next(numbers)

    with database.reading() as session:
        assert recent.get(session, read) == 0
        clock.now = 109.9
        assert recent.get(session, read) == 0
        clock.now = 110
        assert recent.get(session, read) == 1


def test_while_one_reads_others_go_by_what_they_know(database: Database) -> None:
    clock, began, may_end = _Clock(), Event(), Event()
    recent: Recent[int] = Recent(clock)

    def read_long() -> int:
        began.set()
        assert may_end.wait(30)
        return 1

    def get_long(session: Session) -> None:
        recent.get(session, read_long)

    with database.reading() as session:
        recent.get(session, lambda: 0)
        clock.now += 1
        reader = Thread(target=get_long, args=[session])
        reader.start()
        assert began.wait(30)
        assert recent.get(session, lambda: 2) == 0
        may_end.set()
        reader.join()
        assert recent.get(session, lambda: 2) == 1
