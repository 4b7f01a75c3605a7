"""`luthier workers`: who is there, and the release of one that was set aside."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.database import Database, clock
from luthier.service import workers
from luthier.status import Queue

Luthier = Callable[..., Any]


@pytest.fixture
def sick_worker(luthier: Luthier, data_dir: Path) -> str:
    """Id of a worker that is set aside."""
    luthier("db", "upgrade")
    database = Database(f"sqlite:///{data_dir / 'luthier.db'}")
    with database.transaction() as session:
        workers.record_worker(
            session, "host/train-GPU-a", instance_id="i", host="host", queue=Queue.TRAIN, device="GPU-a",
            version="1", resources={}, state="active", now=clock(session),
        )  # fmt: skip
        workers.set_aside(session, "host/train-GPU-a", "Uncorrectable ECC error")
    database.close()
    return "host/train-GPU-a"


def test_a_worker_that_is_set_aside_is_listed_with_the_reason_and_released(
    luthier: Luthier, sick_worker: str
) -> None:
    listed = luthier("workers", "list", "--local").stdout
    assert "sick" in listed
    assert "ECC" in listed
    (row,) = json.loads(luthier("workers", "list", "--local", "-o", "json").stdout)
    assert (row["id"], row["state"]) == (sick_worker, "sick")
    assert sick_worker in luthier("workers", "release", "GPU-a").stderr
    assert "active" in luthier("workers", "list", "--local").stdout


def test_a_worker_that_is_not_there_or_not_set_aside_is_named(luthier: Luthier, sick_worker: str) -> None:
    unknown = luthier("workers", "release", "GPU-b")
    assert (unknown.exit_code, "GPU-b" in unknown.stderr) == (1, True)
    luthier("workers", "release", sick_worker)
    again = luthier("workers", "release", sick_worker)
    assert (again.exit_code, "not set aside" in again.stderr) == (1, True)
