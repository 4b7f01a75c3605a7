"""Waiting for other threads and processes, with a bound."""

import threading
from collections.abc import Callable
from typing import Any

_LOOK_SECONDS = 0.02


def wait_for(condition: Callable[[], Any], seconds: float = 60, what: str = "it") -> Any:
    """The first true answer of a condition; the bound only ends a test that would hang."""
    for _ in range(int(seconds / _LOOK_SECONDS)):
        if answer := condition():
            return answer
        threading.Event().wait(_LOOK_SECONDS)
    raise AssertionError(f"{what} did not happen in {seconds:.0f} s")


def later(*actions: Callable[[], object]) -> threading.Thread:
    """Actions in a thread of their own, one after the other."""
    thread = threading.Thread(target=lambda: [action() for action in actions])
    thread.start()
    return thread
