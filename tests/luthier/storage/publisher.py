"""A process that publishes as it is told and may die anywhere.

`python -m tests.luthier.storage.publisher` reads one JSON line a command, forks a child that obeys it, and
tells how the child ended. The fork costs milliseconds where a new interpreter costs half a second, so a
thousand deaths are affordable.
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from luthier.settings import Settings
from luthier.storage import FileStorage, S3Storage, Storage
from luthier.storage.bucket import Bucket
from luthier.storage.opening import make_client


def main() -> None:
    """Obey until the input ends."""
    storage = _storage(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        command = json.loads(line)
        if (pid := os.fork()) == 0:
            _obey(storage, command)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _storage(told: dict[str, Any]) -> Storage:
    """The storage that the first line describes; of a bucket no connection is open before the forks."""
    if "root" in told:
        return FileStorage(Path(told["root"]))
    settings = Settings(**told["settings"])
    bucket = Bucket(make_client(settings), settings.s3_bucket or "", told["prefix"], told["part_bytes"])
    return S3Storage(bucket, Path(told["spool"]))


def _obey(storage: Storage, command: dict[str, Any]) -> None:
    """Do what a command says, in the child; leave the number of lines that it took where it says.

    `die_at_line` counts lines of Python. `die_after` is seconds: nobody handles that signal, so the kernel
    ends the process where it is, within a system call too.
    """
    source, key = Path(command["source"]), command["key"]
    lines = 0

    def count(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        if event == "line" and lines == command["die_at_line"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    if command["die_after"]:
        signal.setitimer(signal.ITIMER_REAL, command["die_after"])
    else:
        sys.settrace(count)
    match command["action"]:
        case "put":
            storage.put_folder(source, key)
        case "keep":
            storage.keep_sealed(source, key, {"made_by": "new"})
        case "delete":
            storage.delete(key)
    sys.settrace(None)
    Path(command["lines"]).write_text(str(lines), encoding="ascii")
    os._exit(0)


if __name__ == "__main__":
    main()
