"""Waiting for other threads and processes, with a bound."""

import threading
from collections.abc import Callable


def wait_for(condition: Callable[[], bool]) -> None:
    """Until a condition holds, for at most 30 s."""
    for _ in range(1500):
        if condition():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it did not happen in 30 s")


def later(*actions: Callable[[], object]) -> threading.Thread:
    """Actions in a thread of their own, one after the other."""
    thread = threading.Thread(target=lambda: [action() for action in actions])
    thread.start()
    return thread
