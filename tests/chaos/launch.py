"""Starts a process of the worker side as it is, but for two things, and both for one machine's sake.

`python -P -m tests.chaos.launch MODULE ARGUMENTS...`: the child of a run is the scripted trainer, and the
host's name is CHAOS_HOST, so that a handful of agents on one CPU are hosts of their own.
"""

import os
import socket
import sys
from importlib import import_module
from pathlib import Path

from luthier.status import Kind

_SCRIPT = Path(__file__).with_name("scripted_trainer.py")


def child_command(_kind: Kind, folder: Path) -> list[str]:
    """The command line of the scripted trainer."""
    return [sys.executable, "-S", "-P", str(_SCRIPT), os.environ["CHAOS_STAGE"], str(folder)]


def main(module: str, *arguments: str) -> None:
    """Become the module's process."""
    host = os.environ["CHAOS_HOST"]
    socket.gethostname = lambda: host
    # Before the agent is imported: it takes the command as a default.
    import_module("worker.work").child_command = child_command  # type: ignore[attr-defined]
    import_module(module).main(list(arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
