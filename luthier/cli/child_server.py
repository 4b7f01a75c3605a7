"""A whole Luthier for the length of a block: `luthier up` as a child process on a free port."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from luthier.client.address import is_ready, saved_address
from luthier.errors import LuthierError
from luthier.processes import die_with_parent, module_command

_PREFIX = "LUTHIER_"
_START_SECONDS = 120.0
_LOOK_SECONDS = 0.2
_TAIL_LINES = 20


@contextmanager
def running_server(data: Path, settings: Mapping[str, str], log: Path) -> Iterator[str]:
    """Start a server on a fresh data folder, yield its address, and end it.

    Args:
        settings: `LUTHIER_...` variables; those of our own environment do not reach the server.
        log: gets what the server's processes print.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIX)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            module_command("luthier.cli", "up", "--port", "0", "--data-dir", str(data)),
            env={**inherited, **settings},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own: Ctrl-C reaches us alone, and we end the server in order.
            process_group=0,
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509, it calls the kernel and no more
        )
    try:
        yield _wait_until_ready(process, data, log)
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], data: Path, log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        url = saved_address(data)
        if url is not None and is_ready(url):
            return url
        time.sleep(_LOOK_SECONDS)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
    raise LuthierError("\n".join([f"the server did not start; the end of {log}:", *lines]), "not_ready")
