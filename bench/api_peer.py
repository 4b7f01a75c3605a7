"""What is asked of MLflow's tracking server: runs for jobs, metrics, and artifacts for files."""

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import api_load
from api_load import Connection, Measured, Transfer, request
from api_servers import Server

_API = "/api/2.0/mlflow"
_JSON = {"Content-Type": "application/json"}
_RUNS, _BATCH = 200, 1_000
POINTS = 10_000


def measure(server: Server, seconds: float) -> Iterator[Measured]:
    """Runs, and numbers of one of them."""
    connection = Connection(server.port)
    runs = [_created(connection, number) for number in range(_RUNS)]
    turn = itertools.cycle(runs)
    numbers = itertools.count()
    yield api_load.measure(server, "create", lambda: _create(next(numbers)), seconds=seconds)
    yield api_load.measure(server, "get", lambda: _get("runs/get", run_id=next(turn)), seconds=seconds)
    search = _post("runs/search", {"experiment_ids": ["0"], "max_results": 20})
    yield api_load.measure(server, "list of 20", lambda: search, seconds=seconds)
    steps = itertools.count()
    yield api_load.measure(
        server, "metric intake", lambda: _batch(runs[1], next(steps)), seconds=seconds, connections=1,
        each=_BATCH, unit="points",
    )  # fmt: skip
    connection.close()
    # Anew: a server closes a connection that was silent for some seconds.
    connection = Connection(server.port)
    for number in range(POINTS // _BATCH):
        connection.ask(_batch(runs[0], number))
    connection.close()
    history = _get("metrics/get-history", run_id=runs[0], metric_key="train_loss")
    yield api_load.measure(
        server, f"metric history of {POINTS:,}", lambda: history, seconds=seconds, connections=1,
        each=POINTS, unit="points",
    )  # fmt: skip


def transfer(server: Server, path: Path) -> Iterator[Transfer]:
    """A file there and back."""
    url = f"/api/2.0/mlflow-artifacts/artifacts/{path.name}"
    sent, _ = api_load.send(
        server, "upload", path, asked=("PUT", url, {"Content-Type": "application/octet-stream"}),
        form=(b"", b""),
    )  # fmt: skip
    yield sent


def _created(connection: Connection, number: int) -> str:
    answer = connection.ask(_create(number))
    found: str = json.loads(answer.body)["run"]["info"]["run_id"]
    return found


def _create(number: int) -> bytes:
    tags = [{"key": "team", "value": "team-0"}, {"key": "run", "value": str(number)}]
    return _post("runs/create", {"experiment_id": "0", "start_time": _now_ms(), "tags": tags})


def _batch(run_id: str, number: int) -> bytes:
    """Points of one metric, as many as the server takes at once."""
    steps = range(number * _BATCH, (number + 1) * _BATCH)
    points = [
        {"key": "train_loss", "value": 2.0, "timestamp": _now_ms() + step, "step": step} for step in steps
    ]
    return _post("runs/log-batch", {"run_id": run_id, "metrics": points})


def _get(path: str, **query: str) -> bytes:
    return request("GET", f"{_API}/{path}?" + "&".join(f"{key}={value}" for key, value in query.items()), {})


def _post(path: str, body: dict[str, Any]) -> bytes:
    return request("POST", f"{_API}/{path}", _JSON, json.dumps(body).encode())


def _now_ms() -> int:
    return int(time.time() * 1000)
