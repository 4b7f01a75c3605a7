"""`python -m tests.chaos`: the long form of the random run, and the report of it.

Its parts, by `--parts`: `random` (jobs trained under kill -9 and SIGSTOP), `submits` (many short jobs,
submitted while every process and server is killed), `latency`, each on each `--database`; and `publish`, the
thousand kills of the storage's tests. The numbers go into the page that `--report` names. The exit code is 1
where anything was broken, or came later than promised.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from luthier.samples import add_sample
from tests.brokers import Broker
from tests.chaos.latency import measure_latencies
from tests.chaos.random_run import Outcome, Plan, RandomRun, now_text
from tests.chaos.report import (
    Part,
    latency_part,
    machine,
    parts_left_out,
    percentile,
    random_part,
    write_parts,
)
from tests.chaos.schedule import Fault
from tests.chaos.servers import OwnPostgres, own_postgres
from tests.chaos.site import ROOT, Site, running

_EMBEDDED_LIMIT_SECONDS, _REDIS_LIMIT_SECONDS, _CANCEL_LIMIT_SECONDS = 1.0, 0.25, 5.0
_LATENCY_COUNT = 40
_PARTS = ("random", "submits", "latency", "publish")
_PUBLISH_TESTS = "tests/luthier/storage/test_crashes.py"


@dataclass
class Ground:
    """A site that runs, with the servers that it stands on."""

    site: Site
    broker: Broker | None
    postgres: OwnPostgres | None


@contextmanager
def ground(kind: str, hosts: int) -> Iterator[Ground]:
    """SQLite alone, or Postgres with a broker."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="luthier-chaos-")))
        (folder / "site").mkdir()
        (folder / "redis").mkdir()
        add_sample("tiny", folder / "models")
        broker = postgres = None
        url = f"sqlite:///{folder / 'site' / 'luthier.db'}"
        if kind == "postgres":
            postgres = stack.enter_context(own_postgres())
            url, broker = postgres.url, Broker(folder / "redis")
            stack.callback(broker.close)
        site = Site(
            folder / "site",
            url,
            folder / "models",
            redis_url=broker.url if broker else None,
            hosts=tuple(f"host-{number}" for number in range(hosts)),
        )
        yield Ground(stack.enter_context(running(site)), broker, postgres)


def faults_of_training(kind: str, kills: int, stops: int) -> dict[Fault, int]:
    """Most hit an agent or its trainer with kill -9, some send it to sleep, a few hit servers."""
    servers = max(1, kills // 20)
    faults = {
        Fault.KILL_AGENT: kills,
        Fault.STOP_AGENT: stops,
        Fault.KILL_TRAINER: max(1, kills // 4),
        Fault.KILL_API: servers,
        Fault.KILL_DISPATCHER: servers,
    }
    return faults | _faults_of_servers(kind, servers)


def faults_of_submits(kind: str, count: int) -> dict[Fault, int]:
    """Every process and server, equally often, the API more often."""
    faults = {Fault.KILL_API: 2 * count, Fault.KILL_DISPATCHER: count, Fault.KILL_AGENT: count}
    return faults | _faults_of_servers(kind, count)


def _faults_of_servers(kind: str, count: int) -> dict[Fault, int]:
    if kind == "sqlite":
        return {}
    return {Fault.KILL_REDIS: count, Fault.FLUSH_REDIS: count, Fault.STOP_POSTGRES: count}


def main(arguments: list[str]) -> int:
    """Run what was asked for; 0 where nothing was broken and every wait was as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(_PARTS), choices=_PARTS)
    parser.add_argument(
        "--database", nargs="+", default=["sqlite", "postgres"], choices=["sqlite", "postgres"]
    )
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=100, help="kill -9 of agents, at least")
    parser.add_argument("--stops", type=int, default=30, help="SIGSTOP of agents, at least")
    parser.add_argument("--submits", type=int, default=10_000)
    parser.add_argument("--server-faults", type=int, default=20, help="of each kind, during submits")
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args(arguments)
    command = f"python -m tests.chaos {' '.join(arguments)}".strip()
    broken = 0
    if "publish" in options.parts:
        made, broken = _kill_publishers()
        print("\n".join(made.lines), flush=True)
        if options.report is not None:
            write_parts(options.report, [made])
    for kind in options.database:
        for part in (part for part in options.parts if part != "publish"):
            made, count = _run_part(part, kind, options, command)
            broken += count
            print("\n".join(made.lines), flush=True)
            if options.report is not None:
                write_parts(options.report, [made, *parts_left_out()])
    return 1 if broken else 0


def _kill_publishers() -> tuple[Part, int]:
    """The thousand deaths of a publisher that the storage's own tests bring about."""
    arguments = ["pytest", "-q", "-m", "full or not full", _PUBLISH_TESTS]
    command = [sys.executable, "-m", *arguments, "-p", "no:cacheprovider"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
    last = (ran.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")
    lines = [f"`{' '.join(arguments)}`, {now_text()}, {machine()}: {last}."]
    return Part("publish", lines), int(ran.returncode != 0)


def _run_part(part: str, kind: str, options: argparse.Namespace, command: str) -> tuple[Part, int]:
    with ground(kind, options.hosts) as on:
        name = f"{part}-{kind}"
        if part == "latency":
            limit = _EMBEDDED_LIMIT_SECONDS if kind == "sqlite" else _REDIS_LIMIT_SECONDS
            found = measure_latencies(on.site, _LATENCY_COUNT, first_number=1)
            late = percentile(found.start_beyond_trainer, 0.95) > limit
            late |= percentile(found.cancel_to_free, 0.95) > _CANCEL_LIMIT_SECONDS
            return latency_part(name, found, command, start_limit=limit), int(late)
        outcome = _random_run(part, kind, on, options)
        if outcome.broken:
            _keep_for_a_look(on.site.folder)
        return random_part(name, outcome, command), len(outcome.broken)


def _random_run(part: str, kind: str, on: Ground, options: argparse.Namespace) -> Outcome:
    if part == "random":
        faults = faults_of_training(kind, options.kills, options.stops)
        plan = Plan(options.seed, options.jobs, faults)
    else:
        faults = faults_of_submits(kind, options.server_faults)
        # Most are called off at once, so that submits come thick and fast.
        plan = Plan(
            options.seed, options.submits, faults, steps=1, save_steps=1, submitter_count=4,
            cancel_share=0.8, wish_seconds=0.1,
        )  # fmt: skip
    return RandomRun(on.site, plan, broker=on.broker, postgres=on.postgres, say=_say).run()


def _keep_for_a_look(folder: Path) -> None:
    kept = Path(tempfile.mkdtemp(prefix="luthier-chaos-broken-"))
    shutil.copytree(folder, kept, dirs_exist_ok=True)
    _say(f"something is broken; the site is kept in {kept}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
