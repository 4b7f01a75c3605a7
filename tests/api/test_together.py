"""Questions that are answered together: who waits for whom, and what each hears."""

import asyncio
from collections.abc import Mapping, Sequence
from threading import Event

import pytest

from api.together import Together


class _Asker:
    """Answers with the lengths of words, once it may."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.may_answer = Event()

    def __call__(self, words: Sequence[str]) -> Mapping[str, int]:
        self.asked.append(list(words))
        assert self.may_answer.wait(30)
        if "bad" in words:
            raise ValueError("bad")
        return {word: len(word) for word in words if word != "none"}


async def _begun(asker: _Asker, together: Together[str, int], word: str) -> "asyncio.Task[int | None]":
    task = asyncio.create_task(together.get(word))
    while not asker.asked:
        await asyncio.sleep(0)
    return task


def test_those_that_come_while_one_is_asked_are_asked_together() -> None:
    async def main() -> list[int | None]:
        first = await _begun(asker, together, "a")
        others = [asyncio.create_task(together.get(word)) for word in ("bb", "none", "bb", "ccc")]
        await asyncio.sleep(0)
        asker.may_answer.set()
        return [await each for each in (first, *others)]

    asker = _Asker()
    together = Together(asker, at_once=2)
    assert asyncio.run(main()) == [1, 2, None, 2, 3]
    assert asker.asked == [["a"], ["bb", "none"], ["ccc"]]


def test_what_goes_wrong_is_heard_by_those_who_asked_and_by_nobody_later() -> None:
    async def main() -> int | None:
        asker.may_answer.set()
        failed = await asyncio.gather(together.get("bad"), together.get("a"), return_exceptions=True)
        assert [type(each) for each in failed] == [ValueError, ValueError]
        return await together.get("a")

    asker = _Asker()
    together = Together(asker)
    assert asyncio.run(main()) == 1


def test_who_goes_away_takes_no_answer_along() -> None:
    async def main() -> int | None:
        first = await _begun(asker, together, "a")
        second = asyncio.create_task(together.get("a"))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        asker.may_answer.set()
        return await second

    asker = _Asker()
    together = Together(asker)
    assert asyncio.run(main()) == 1
