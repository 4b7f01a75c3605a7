"""An installation over a database of many jobs, and what is asked of its API.

Reads are of the largest project; new jobs are made in one that has no others. Numbers of running jobs do not
come over HTTP: an agent writes them into the database, so intake is measured as an agent does it.
"""

import itertools
import json
import resource
import secrets
from asyncio import gather, open_connection, run, sleep, timeout
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import api_load
import scale_rows
import scale_work
from api_load import Connection, Measured, Transfer, request
from api_servers import Server
from sqlalchemy import insert, select, update

from luthier.database import Database, clock
from luthier.ids import new_id
from luthier.installation import open_installation
from luthier.keys import new_key
from luthier.service import access
from luthier.service.transitions import note
from luthier.settings import Settings
from luthier.status import State
from luthier.tables import File, Job, Metric, Project, Worker

READ_PROJECT, NEW_PROJECT = 0, 5
HISTORY, LONG_HISTORY = 10_000, 100_000
_JOBS = "/v1/fine_tuning/jobs"
_MODEL = "Qwen/Qwen2.5-0.5B"
_SAMPLED_JOBS, _LINES_PER_BATCH, _NUMBERS_PER_LINE = 1_000, 200, 5
_JSON = {"Content-Type": "application/json"}
_BOUNDARY = "7f3a"


@dataclass(frozen=True)
class Streams:
    """What many listeners of one job came to; memory is that of the server."""

    server: str
    listeners: int
    seconds_to_open: float
    seconds_until_all_have_an_event: float
    client_cpu_seconds: float
    memory_before_mib: float
    memory_with_listeners_mib: float


class Site:
    """One database, its keys, and ids of what is in it.

    Args:
        folder: the data folder; made where it is missing.
        job_count: of a database that is built here when `folder` says that it is not yet.
    """

    def __init__(self, url: str, folder: Path, job_count: int) -> None:
        self.settings = {
            "LUTHIER_DATA_DIR": str(folder),
            "LUTHIER_DATABASE_URL": url,
            # As docker-compose.yml has it.
            "LUTHIER_LOG_FORMAT": "json",
        }
        self._job_count = job_count
        installation = open_installation(Settings(data_dir=folder, database_url=url))
        self.database = installation.database
        mark = folder / "built"
        if not mark.exists():
            print(f"building {job_count:,} jobs")
            scale_rows.build(self.database, job_count)
            self._add_rows()
            mark.touch()
        with self.database.transaction() as session:
            # As if the agents were there, though the database may be an old one.
            session.execute(update(Worker).values(heartbeat_at=clock(session) + timedelta(hours=1)))
        self._keys = {
            project: _add_key(self.database, installation.installation_key, project)
            for project in (READ_PROJECT, NEW_PROJECT)
        }

    def measure(self, server: Server, seconds: float) -> Iterator[Measured]:
        """All operations, one after the other."""
        ended = itertools.cycle(self._ended())

        def measured(operation: str, next_request: Callable[[], bytes], **more: Any) -> Measured:
            return api_load.measure(server, operation, next_request, seconds=seconds, **more)

        def same(path: str, project: int = READ_PROJECT, **headers: str) -> Callable[[], bytes]:
            asked = self._get(path, project, **headers)
            return lambda: asked

        yield measured("create", self._create)
        yield measured("get", lambda: self._get(f"{_JOBS}/{next(ended)}"))
        yield measured("get, queued", same(f"{_JOBS}/{self._newest(server)}", NEW_PROJECT))
        known = f"{_JOBS}/{next(ended)}"
        tag = self._ask(server, known).header("etag")
        polled = same(known, **{"If-None-Match": tag})
        yield measured("get, 304", polled, expected=304)
        many = f"get, 304, {api_load.POLLERS} clients"
        yield measured(many, polled, expected=304, connections=api_load.POLLERS)
        yield measured("list of 20", same(f"{_JOBS}?limit=20"))
        yield measured("list of 20, ended", lambda: self._get(f"{_JOBS}?limit=20&after={next(ended)}"))
        yield measured("list of 20, queued", same(f"{_JOBS}?limit=20", NEW_PROJECT))
        yield measured("events", lambda: self._get(f"{_JOBS}/{next(ended)}/events"))
        yield self._intake(server, seconds)
        for name, number, count, query in (
            (f"metric history of {HISTORY:,}", 0, HISTORY, f"keys=train_loss&max_points={HISTORY}"),
            (f"metrics of {LONG_HISTORY:,}", 4, LONG_HISTORY, f"keys=train_loss&max_points={LONG_HISTORY}"),
            (f"metrics of {LONG_HISTORY:,}, thinned", 4, LONG_HISTORY, "keys=train_loss"),
        ):
            path = f"{_JOBS}/{scale_rows.job_id(number)}/metrics?{query}"
            yield measured(name, same(path), connections=1, each=count, unit="points")

    def transfer(self, server: Server, path: Path) -> Iterator[Transfer]:
        """A file there and back; it goes at the end."""
        form = (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n\r\n'
        ).encode()
        headers = self._headers(NEW_PROJECT) | {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
        sent, answer = api_load.send(
            server, "upload", path, asked=("POST", "/v1/files", headers),
            form=(form, f"\r\n--{_BOUNDARY}--\r\n".encode()),
        )  # fmt: skip
        yield sent
        url = f"/v1/files/{json.loads(answer.body)['id']}"
        yield api_load.take(server, "download", self._get(f"{url}/content", NEW_PROJECT))
        connection = Connection(server.port)
        connection.ask(request("DELETE", url, self._headers(NEW_PROJECT)))
        connection.close()

    def listen(self, server: Server, listeners: int) -> Streams:
        """Many listeners of one job, and one event for all of them."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        found = run(self._listen(server, listeners))
        print(
            f"{found.server:18} {listeners:,} listeners: open after {found.seconds_to_open} s, all have an "
            f"event after {found.seconds_until_all_have_an_event} s (client {found.client_cpu_seconds} s of "
            f"cpu), memory {found.memory_before_mib} -> {found.memory_with_listeners_mib} MiB", flush=True,
        )  # fmt: skip
        return found

    async def _listen(self, server: Server, listeners: int) -> Streams:
        before, began = server.memory_bytes(), perf_counter()
        job_id, last = self._running()
        # As who connects again: told is what is new, and not the history.
        asked = self._get(f"{_JOBS}/{job_id}/events/stream?after={last}")
        opened = []
        # As many at a time as a listening socket keeps waiting.
        for start in range(0, listeners, 100):
            count = min(100, listeners - start)
            opened += await gather(*(_open(server.port, asked) for _ in range(count)))
        open_seconds = perf_counter() - began
        await sleep(1)
        memory, mark, cpu = server.memory_bytes(), secrets.token_hex(8), process_time()
        with self.database.transaction() as session:
            note(session, session.get_one(Job, job_id), "setting_noted", mark, now=clock(session))
        began = perf_counter()
        async with timeout(60):
            await gather(*(reader.readuntil(mark.encode()) for reader, _ in opened))
        taken = perf_counter() - began
        for _, writer in opened:
            writer.close()
        return Streams(
            server.name, listeners, round(open_seconds, 2), round(taken, 2), round(process_time() - cpu, 2),
            round(before / (1 << 20), 1), round(memory / (1 << 20), 1),
        )  # fmt: skip

    def _intake(self, server: Server, seconds: float) -> Measured:
        """Batches of a running job's lines, each in a transaction of its own."""
        client = scale_work.Client(self.database, self._job_count, 0)
        database = server.database_seconds()
        batches = client.record(seconds, _LINES_PER_BATCH, share=0, of=1)
        after = server.database_seconds()
        points = batches * _LINES_PER_BATCH * _NUMBERS_PER_LINE
        each_ms = round(1000 * seconds / batches, 2)
        found = Measured(
            server=server.name, operation="metric intake", count=batches,
            per_second=round(points / seconds, 1), p50_ms=each_ms, p99_ms=each_ms, server_ms=None,
            database_ms=api_load.each_ms(after, database, batches),
            unit="points",
        )  # fmt: skip
        api_load.show(found)
        return found

    def _create(self) -> bytes:
        body = {
            "model": _MODEL, "training_file": _file_of(NEW_PROJECT),
            "metadata": {"team": "team-0", "run": secrets.token_hex(4)},
        }  # fmt: skip
        headers = self._headers(NEW_PROJECT) | _JSON
        return request("POST", _JOBS, headers, json.dumps(body).encode())

    def _get(self, path: str, project: int = READ_PROJECT, **headers: str) -> bytes:
        return request("GET", path, self._headers(project) | headers)

    def _headers(self, project: int) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._keys[project]}"}

    def _ask(self, server: Server, path: str, project: int = READ_PROJECT) -> api_load.Answer:
        connection = Connection(server.port)
        answer = connection.ask(self._get(path, project))
        connection.close()
        return answer

    def _newest(self, server: Server) -> str:
        """The job that was made last."""
        found: str = json.loads(self._ask(server, f"{_JOBS}?limit=1", NEW_PROJECT).body)["first_id"]
        return found

    def _ended(self) -> list[str]:
        """Training jobs of the largest project that have ended, from all over the year."""
        count = self._job_count - 2 * scale_rows.LIVE
        step = max(4, count // _SAMPLED_JOBS // 4 * 4)
        return [scale_rows.job_id(number) for number in range(8, count, step)]

    def _running(self) -> tuple[str, int]:
        """A job at work, and the number of its last event."""
        query = select(Job.id, Job.next_number - 1).where(
            Job.project_id == scale_rows.project_id(READ_PROJECT), Job.state == State.RUNNING
        )
        with self.database.reading() as session:
            return session.execute(query.limit(1)).one()._tuple()

    def _add_rows(self) -> None:
        with self.database.transaction() as session:
            now = clock(session)
            session.add(
                File(
                    id=_file_of(NEW_PROJECT), project_id=scale_rows.project_id(NEW_PROJECT),
                    filename="rows.jsonl", purpose="fine-tune", size_bytes=1000, sha256="0" * 64,
                    storage_key="x", status="processed", created_at=now,
                )
            )  # fmt: skip
            for number, steps in ((0, HISTORY), (4, LONG_HISTORY)):
                _add_metrics(session, scale_rows.job_id(number), steps, now)


async def _open(port: int, asked: bytes) -> Any:
    reader, writer = await open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(asked)
    await reader.readuntil(b"event: status")
    return reader, writer


def _add_key(database: Database, installation_key: bytes, project: int) -> str:
    key = new_key()
    with database.transaction() as session:
        row = session.get_one(Project, scale_rows.project_id(project))
        access.record_key(
            session, row, key, key_id=new_id("key"), name="bench", installation_key=installation_key,
            now=clock(session),
        )  # fmt: skip
    return key.text


def _add_metrics(session: Any, job_id: str, steps: int, now: datetime) -> None:
    job = session.get_one(Job, job_id)
    first = job.next_number
    rows = [
        {
            "job_id": job_id, "number": first + step, "project_id": job.project_id, "epoch": 1, "at": now,
            "step": step + 1, "total_steps": steps, "train_loss": 1 + 1 / (1 + step), "learning_rate": 1e-4,
            "grad_norm": 1.0, "tokens_per_second": 9000.0, "is_superseded": False,
        }
        for step in range(steps)
    ]  # fmt: skip
    session.execute(insert(Metric), rows)
    session.execute(update(Job).where(Job.id == job_id).values(next_number=first + steps))


def _file_of(project: int) -> str:
    return f"file-own-{project}"
