"""The API over loopback, beside the limits of its framework and beside MLflow: `python bench/api.py`.

Starts each server as it is installed, with one worker process (`api_servers`), and asks it over a few kept
connections (`api_load`): a bare FastAPI route and file server; then, on SQLite and on a private Postgres,
MLflow's tracking server, where `--mlflow` names a Python that has it, and Luthier over `--jobs` jobs
(`scale_rows`; minutes and some 5 GB each, kept for the next time with `--folder`). Clients share the cores.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# This file is called as the package that it measures.
sys.path.append(sys.path.pop(0))

import api_load
import api_peer
import api_servers
from api_load import Measured, Transfer
from api_servers import Server
from api_site import Site, Streams
from databases import folder_for, machine, served, version_of

RESULTS = Path(__file__).parent / "results" / "api.json"
_ROW = {"messages": [{"role": "user", "content": "Q" * 400}, {"role": "assistant", "content": "A" * 560}]}
_BARE = "bare"
# How often as much as somebody else: operation, whose, how much on SQLite and on Postgres. The peer has the
# same database.
_POLLED, _ROUTE = f"get, 304, {api_load.POLLERS} clients", f"route, {api_load.POLLERS} clients"
_LIMIT_GOALS = ((_POLLED, _ROUTE, 0.5, 0.5), ("get, 304", "route", 0.5, 0.5))
_PEER_GOALS = (
    ("create", "create", 2, 3),
    ("get", "get", 5, 5),
    ("list of 20", "list of 20", 5, 5),
    ("metric intake", "metric intake", 5, 5),
    ("metric history of 10,000", "metric history of 10,000", 5, 5),
)


@dataclass(frozen=True)
class Ratio:
    """How often as much a server of ours does as another one."""

    operation: str
    server: str
    beside: str
    ratio: float
    goal: float


@dataclass
class Found:
    """Everything that was measured."""

    measured: list[Measured] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    streams: list[Streams] = field(default_factory=list)

    def ratios(self) -> Iterator[Ratio]:
        """Of what was measured on both sides, in the order of the goals."""
        rates = {(each.server, each.operation): each.per_second for each in self.measured}
        for goals, peer in ((_LIMIT_GOALS, _BARE), (_PEER_GOALS, "mlflow, {}")):
            for operation, its_operation, *wanted in goals:
                for kind, goal in zip(("sqlite", "postgres"), wanted, strict=True):
                    server, other = f"luthier, {kind}", peer.format(kind)
                    rate, beside = rates.get((server, operation)), rates.get((other, its_operation))
                    if rate is not None and beside is not None:
                        ratio = round(rate / beside, 2)
                        yield Ratio(operation, server, f"{other}: {its_operation}", ratio, goal)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1_000_000, help="in the database, at least 100,000")
    parser.add_argument("--seconds", type=float, default=5, help="of each operation")
    parser.add_argument("--bytes", type=int, default=2_000_000_000, help="of the file that is sent")
    parser.add_argument("--listeners", type=int, default=1_000)
    parser.add_argument(
        "--databases", nargs="*", choices=["sqlite", "postgres"], default=["sqlite", "postgres"]
    )
    parser.add_argument("--mlflow", type=Path, help="Python of an environment with MLflow; default: left out")
    parser.add_argument("--folder", type=Path, help="where the databases are built and kept")
    parser.add_argument("--to", type=Path, default=RESULTS)
    asked = parser.parse_args()
    found, versions = Found(), {}
    with folder_for(asked.folder) as folder:
        rows = _rows(folder / "rows.jsonl", asked.bytes)
        api_load.show_heading()
        with api_servers.bare(folder, folder / "bare.log") as server:
            _measure_bare(server, rows, asked.seconds, found)
        for kind in asked.databases:
            if asked.mlflow:
                _measure_mlflow(kind, folder / f"mlflow-{kind}", rows, asked, found)
            versions[kind] = _measure_luthier(kind, folder, rows, asked, found)
    ratios = list(found.ratios())
    _show_ratios(ratios)
    plan = {name: value for name, value in vars(asked).items() if not isinstance(value, Path)}
    told: dict[str, Any] = {
        "machine": machine() | versions,
        "plan": plan,
        "ratios": list(map(asdict, ratios)),
    }
    asked.to.write_text(json.dumps(told | asdict(found), indent=1) + "\n")
    print(f"written to {asked.to}")


def _measure_bare(server: Server, rows: Path, seconds: float, found: Found) -> None:
    for operation, path, clients in (
        ("route", "/bare", api_load.CONNECTIONS),
        (_ROUTE, "/bare", api_load.POLLERS),
        ("route in a thread", "/threaded", api_load.CONNECTIONS),
    ):
        asked = api_load.request("GET", path, {})
        found.measured.append(
            api_load.measure(
                server, operation, lambda asked=asked: asked, seconds=seconds, connections=clients
            )
        )
    asked = ("PUT", "/files/sent.jsonl", {})
    found.transfers.append(api_load.send(server, "upload", rows, asked=asked, form=(b"", b""))[0])
    rows.with_name("sent.jsonl").unlink()
    taken = api_load.request("GET", f"/files/{rows.name}", {})
    found.transfers.append(api_load.take(server, "download", taken))


def _measure_mlflow(kind: str, folder: Path, rows: Path, asked: argparse.Namespace, found: Found) -> None:
    folder.mkdir(exist_ok=True)
    with (
        served(kind, folder) as (url, database_seconds),
        api_servers.mlflow(kind, asked.mlflow, url, folder, database_seconds) as server,
    ):
        found.measured += api_peer.measure(server, asked.seconds)
        found.transfers += api_peer.transfer(server, rows)
    (folder / "artifacts" / rows.name).unlink()


def _measure_luthier(kind: str, folder: Path, rows: Path, asked: argparse.Namespace, found: Found) -> str:
    with ExitStack() as stack:
        url, database_seconds = stack.enter_context(served(kind, folder))
        site = Site(url, folder / f"data-{kind}", asked.jobs)
        stack.callback(site.database.close)
        log = folder / f"luthier-{kind}.log"
        server = stack.enter_context(api_servers.luthier(kind, site.settings, log, database_seconds))
        found.measured += site.measure(server, asked.seconds)
        found.transfers += site.transfer(server, rows)
        found.streams.append(site.listen(server, asked.listeners))
        return version_of(url)


def _rows(path: Path, size_bytes: int) -> Path:
    """A file of chat rows of about that size."""
    line = json.dumps(_ROW).encode() + b"\n"
    block = line * 1000
    if not path.exists() or abs(path.stat().st_size - size_bytes) > len(block):
        with path.open("wb") as file:
            for _ in range(max(1, round(size_bytes / len(block)))):
                file.write(block)
    return path


def _show_ratios(ratios: list[Ratio]) -> None:
    print(f"\n{'operation':28}{'server':20}{'beside':44}{'ratio':>8}{'goal':>7}")
    for each in ratios:
        missed = "" if each.ratio >= each.goal else " !"
        print(f"{each.operation:28}{each.server:20}{each.beside:44}{each.ratio:7.2f}x{each.goal:6g}x{missed}")


if __name__ == "__main__":
    main()
