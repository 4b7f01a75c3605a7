"""Sites for faults, on the databases and the broker of the tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Broker
from tests.chaos.site import Site, running


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker of one's own, for faults that others must not feel."""
    folder = tmp_path / "redis"
    folder.mkdir()
    broker = Broker(folder)
    yield broker
    broker.close()


@pytest.fixture
def make_site(tmp_path: Path, sqlite_url: str, model_dir: Path) -> Iterator[Callable[..., Site]]:
    """Sites that run; one host and SQLite unless told otherwise."""
    with ExitStack() as stack:

        def make(**fields: Any) -> Site:
            defaults = {"database_url": sqlite_url, "model_dir": model_dir, "hosts": ("host-0",)}
            folder = tmp_path / "site"
            folder.mkdir()
            return stack.enter_context(running(Site(folder, **defaults | fields)))

        yield make
