"""A million jobs, a thousand of them running, and many agents: `python bench/scale.py sqlite|postgres`.

Builds the database (`scale_rows`; minutes and some 5 GB, kept for the next time with `--folder`), has two
processes ask for everything at once, record the numbers of running jobs as fast as they can, then lets agents
without children end two thousand jobs. Clients and server share the machine's cores. Needs the server's and
the test packages, no device.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# A file beside this one is called as the package that is measured. Processes that are spawned do it again.
sys.path.remove(str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parent))

import scale_rows
import scale_work
from databases import folder_for, machine, served, version_of
from scale_work import Client
from sqlalchemy import text

from luthier.database import Database

GOAL_MS = 50.0
GOAL_OPERATIONS = ("claim", "submit", "list", "get", "events")
RESULTS = Path(__file__).parent / "results"
_PROCESSES, _AGENT_PROCESSES = 2, 4
# SQLite has one writer at a time, and is meant for eight running jobs.
_AGENTS = {"sqlite": 8, "postgres": 64}


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one operation while all others go on beside it."""

    operation: str
    count: int
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True)
class Recording:
    """How many batches of a running job's numbers were stored, each in a transaction of its own.

    `server_ms` is the processor time that the database took for one, where it is a process of its own.
    """

    processes: int
    lines_per_batch: int
    batches_per_second: float
    rows_per_second: float
    server_ms: float | None


@dataclass(frozen=True)
class Agents:
    """What agents ended together."""

    agents: int
    jobs: int
    seconds: float
    jobs_per_second: float
    transactions_per_second: float
    distinct: int
    succeeded_once: int


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    job_count: int
    rounds: int
    seconds: float
    agents: int
    agent_jobs: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("database", choices=["sqlite", "postgres"])
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=300, help="of each operation, in each process")
    parser.add_argument("--seconds", type=float, default=15, help="of each recording")
    parser.add_argument("--agents", type=int, help="default: 64 on Postgres, 8 on SQLite")
    parser.add_argument("--agent-jobs", type=int, default=2_000)
    parser.add_argument("--folder", type=Path, help="where the database is built and kept")
    parser.add_argument("--to", type=Path, help="default: bench/results/scale-DATABASE.json")
    asked = parser.parse_args()
    agents = asked.agents or _AGENTS[asked.database]
    plan = Plan(asked.jobs, asked.rounds, asked.seconds, agents, asked.agent_jobs)
    with folder_for(asked.folder) as folder, served(asked.database, folder) as (url, server_seconds):
        found = _run(url, plan, folder / f"{asked.database}.built", server_seconds)
    path = asked.to or RESULTS / f"scale-{asked.database}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {path}")


def _run(url: str, plan: Plan, mark: Path, server_seconds: Callable[[], float] | None) -> dict[str, Any]:
    if not mark.exists():
        print(f"building {plan.job_count:,} jobs")
        database = Database(url)
        scale_rows.build(database, plan.job_count)
        with database.transaction() as session:
            scale_work.add_file(session, 5)
        database.close()
        mark.touch()
    latencies = _measure(url, plan)
    recordings = [_record(url, plan, lines, server_seconds) for lines in (1, 10)]
    agents = _agents(url, plan)
    return {
        "machine": machine() | {"database": version_of(url)},
        "plan": asdict(plan),
        "latencies": [asdict(item) for item in latencies],
        "recordings": [asdict(item) for item in recordings],
        "agents": asdict(agents),
    }


def _measure(url: str, plan: Plan) -> list[Latency]:
    """Each operation in two processes; a warm-up of a tenth is not counted."""
    with _pool(_PROCESSES) as pool:
        list(pool.map(_ask, [(url, plan, seed, max(2, plan.rounds // 10)) for seed in range(_PROCESSES)]))
        parts = list(pool.map(_ask, [(url, plan, seed, plan.rounds) for seed in range(_PROCESSES)]))
    latencies = [
        _latency(name, sorted(ms for part in parts for ms in part[name])) for name in sorted(parts[0])
    ]
    print(f"{'':28}{'count':>7}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}")
    for item in latencies:
        late = " !" if item.operation.split(",")[0] in GOAL_OPERATIONS and item.p99_ms > GOAL_MS else ""
        print(
            f"{item.operation:28}{item.count:7}{item.p50_ms:9.1f}{item.p99_ms:9.1f}{item.max_ms:9.1f}{late}"
        )
    return latencies


def _latency(operation: str, times: list[float]) -> Latency:
    def at(share: float) -> float:
        return round(times[min(len(times) - 1, int(share * len(times)))], 2)

    return Latency(operation, len(times), at(0.5), at(0.99), round(times[-1], 2))


def _record(url: str, plan: Plan, lines: int, server_seconds: Callable[[], float] | None) -> Recording:
    before = server_seconds() if server_seconds else 0.0
    with _pool(_PROCESSES) as pool:
        counts = list(pool.map(_store, [(url, plan, share, lines) for share in range(_PROCESSES)]))
        taken = server_seconds() - before if server_seconds else None
    rate = sum(counts) / plan.seconds
    server_ms = None if taken is None else round(1000 * taken / sum(counts), 3)
    found = Recording(_PROCESSES, lines, round(rate, 1), round(lines * rate, 1), server_ms)
    print(
        f"recording, {lines} lines a batch: {found.batches_per_second:,.0f} batches/s, "
        f"{found.rows_per_second:,.0f} rows/s, server {server_ms} ms a batch"
    )
    return found


def _agents(url: str, plan: Plan) -> Agents:
    """Agents as threads of some processes; what they ended is counted by them and by the database."""
    share = plan.agents // _AGENT_PROCESSES
    tasks = [(url, plan, number, share) for number in range(_AGENT_PROCESSES)]
    with _pool(_AGENT_PROCESSES) as pool:
        drained = list(pool.map(_drain, tasks))
    seconds = max(part.ended_at for part in drained) - min(part.began_at for part in drained)
    ended = [job_id for part in drained for job_id in part.job_ids]
    database = Database(url)
    with database.reading() as session:
        query = (
            "SELECT count(*) FROM jobs WHERE id = :id AND state = 'succeeded' AND 1 = "
            "(SELECT count(*) FROM events WHERE job_id = jobs.id AND kind = 'job_succeeded')"
        )
        once = sum(session.execute(text(query), {"id": job_id}).scalar_one() for job_id in set(ended))
    database.close()
    # Claim, first words, three steps with a heartbeat each, and two for the end.
    transactions = 10 * len(ended) / seconds
    found = Agents(
        plan.agents, len(ended), round(seconds, 1), round(len(ended) / seconds, 1), round(transactions),
        len(set(ended)), once,
    )  # fmt: skip
    print(
        f"{found.agents} agents ended {found.jobs} jobs ({found.distinct} distinct, {once} succeeded) in "
        f"{found.seconds} s: {found.jobs_per_second} jobs/s, {found.transactions_per_second} transactions/s"
    )
    return found


def _ask(task: tuple[str, Plan, int, int]) -> scale_work.Timings:
    url, plan, seed, rounds = task
    return Client(Database(url), plan.job_count, seed).measure(rounds)


def _store(task: tuple[str, Plan, int, int]) -> int:
    url, plan, share, lines = task
    client = Client(Database(url), plan.job_count, share)
    return client.record(plan.seconds, lines, share=share, of=_PROCESSES)


@dataclass(frozen=True)
class _Drained:
    """What the agents of one process ended, and between which times (Unix seconds)."""

    job_ids: list[str]
    began_at: float
    ended_at: float


def _drain(task: tuple[str, Plan, int, int]) -> _Drained:
    url, plan, number, agents = task
    client = Client(Database(url), plan.job_count, number)
    left = plan.agent_jobs // _AGENT_PROCESSES
    lock = threading.Lock()

    def may_go_on() -> bool:
        nonlocal left
        with lock:
            left -= 1
            return left >= 0

    with ThreadPoolExecutor(agents) as pool:
        names = [f"agent{number}-{thread}/gpu0" for thread in range(agents)]
        began = time.time()
        found = pool.map(lambda name: client.drain(name, may_go_on), names)
        return _Drained([job_id for part in found for job_id in part], began, time.time())


def _pool(size: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(size, mp_context=get_context("spawn"))


if __name__ == "__main__":
    main()
