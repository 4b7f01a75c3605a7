"""`luthier up`: all of Luthier on one machine, with SQLite, local files and no broker.

It prepares the data folder, then keeps the processes alive until it is told to stop. A lock file holds off a
second `up` on the same folder; `server.json` tells the client where the server listens.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier import schema
from luthier.backup import back_up_rows
from luthier.cli.database import answering, check_file
from luthier.cli.terminal import fail, say
from luthier.client.address import KEY_VARIABLE, SERVER_FILE, is_ready
from luthier.devices import CPU, Device, choose_devices, list_gpus
from luthier.errors import LuthierError
from luthier.installation import Installation, open_installation, prepare
from luthier.processes import ChildSpec, ProcessGroup, module_command
from luthier.settings import Settings
from luthier.status import Queue

LOCK_FILE = "up.lock"
_ENDING_SECONDS = 30.0
_READY_LOOK_SECONDS = 0.5

app = typer.Typer()


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on (LUTHIER_HOST).")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port (LUTHIER_PORT); 0 takes a free one.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where everything is kept (LUTHIER_DATA_DIR).", file_okay=False)
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(help="GPUs by index or UUID with commas, `cpu`, or `auto` (LUTHIER_GPUS).")
    ] = None,
) -> None:
    """Start Luthier on this machine; Ctrl-C ends it.

    The first start shows the URL and one API key; note it, it is not shown again. Jobs that run when Luthier
    ends go on from their last checkpoint at the next start.
    """
    # One machine needs no broker, whatever the environment says for others.
    os.environ.pop("LUTHIER_REDIS_URL", None)
    asked: dict[str, Any] = {"host": host, "port": port, "data_dir": data_dir, "gpus": gpus}
    settings = Settings(**{name: value for name, value in asked.items() if value is not None})
    if problems := settings.problems():
        raise LuthierError("; ".join(problems))
    devices = choose_devices(settings.gpus, list_gpus())
    with locked(settings.data):
        port = _free_port(settings.host, settings.port)
        _prepare(settings)
        url = f"http://{_reachable(settings.host)}:{port}"
        say(f"Luthier listens on {url}, data in {settings.data}")
        watch = _ReadyWatch(url, devices)
        group = ProcessGroup(
            _children(settings, port, devices),
            grace_seconds=settings.stop_grace_seconds + _ENDING_SECONDS,
            report=say,
        )
        with _address_file(settings.data / SERVER_FILE, url):
            group.run(while_running=watch.look)
    say("Luthier has ended")


class _ReadyWatch:
    """Says once that the server can be used."""

    def __init__(self, url: str, devices: Sequence[Device]) -> None:
        self._url, self._devices = url, devices
        self._is_ready, self._next_look = False, 0.0

    def look(self) -> None:
        if self._is_ready or time.monotonic() < self._next_look:
            return
        self._is_ready = is_ready(self._url)
        self._next_look = time.monotonic() + _READY_LOOK_SECONDS
        if self._is_ready:
            names = ", ".join(device.name for device in self._devices)
            print(f"ready: {self._url} (training on {names})", flush=True)


def _prepare(settings: Settings) -> None:
    """Bring the data folder to this release, and show the first key where one was made."""
    installation = open_installation(settings)
    with answering(installation.database) as database:
        before = schema.current_revision(database)
        check_file(database, settings)
        if before is not None and before != schema.wanted_revision() and schema.is_known(before):
            _back_up_first(installation, before)
        prepared = prepare(installation)
        if not database.restore_reserve():
            say("warning: too little room to hold some back for the database (LUTHIER_RESERVE_BYTES)")
    if prepared.upgraded and before is not None:
        say(f"The database was migrated from {before} to {schema.wanted_revision()}")
    if prepared.first_key is not None and settings.bootstrap_key is None:
        say("The API key, shown this once; keep it, and give it to clients:")
        print(f"{KEY_VARIABLE}={prepared.first_key}", flush=True)
    # It is stored by now; no process needs it in clear.
    os.environ.pop("LUTHIER_BOOTSTRAP_KEY", None)


def _back_up_first(installation: Installation, revision: str) -> None:
    """Keep the rows as the older release left them; the way back is `luthier restore` with that release."""
    now = datetime.now(UTC)
    folder = installation.settings.data / "backups" / f"before-upgrade-of-{revision}-{now:%Y%m%dT%H%M%SZ}"
    back_up_rows(installation, folder, now=now)
    say(f"The database has the older schema {revision}: it was backed up to {folder}, and is migrated now")


def _children(settings: Settings, port: int, devices: Sequence[Device]) -> list[ChildSpec]:
    environment = {
        "LUTHIER_DATA_DIR": str(settings.data),
        "LUTHIER_HOST": settings.host,
        "LUTHIER_PORT": str(port),
        "LUTHIER_GPUS": settings.gpus,
    }
    modules = [("api", module_command("api")), ("dispatcher", module_command("worker.dispatcher"))]
    places = [(Queue.TRAIN, device.id) for device in devices] + [(Queue.CPU, CPU)]
    modules += [
        (f"{queue} agent on {device}", module_command("worker.agent", "--queue", queue, "--device", device))
        for queue, device in places
    ]
    modules.append(("errands agent", module_command("worker.agent", "--queue", Queue.CPU, "--errands")))
    return [ChildSpec(name, command, environment) for name, command in modules]


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """Hold the data folder; the kernel lets go of it however this process ends."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (data / LOCK_FILE).open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            fail(f"Luthier already runs on {data}, as process {holder}: stop it, or choose --data-dir")
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextmanager
def _address_file(path: Path, url: str) -> Iterator[None]:
    """Tell clients of this machine where the server is, as long as it runs."""
    path.write_text(json.dumps({"url": url, "pid": os.getpid()}) + "\n", encoding="utf-8")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _free_port(host: str, port: int) -> int:
    """The port itself, or a free one for 0, so that a taken one is told at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            fail(
                f"cannot listen on {host}:{port} ({error.strerror}): choose another with --port, or --port 0"
            )
        return int(probe.getsockname()[1])


def _reachable(host: str) -> str:
    """An address of this machine that leads to what listens on `host`."""
    if host in ("0.0.0.0", ""):  # noqa: S104, compared with and not bound to
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host
