"""A Celery worker with our settings and a task that tells what happens to it.

`python contract_worker.py URL LOG SETTINGS [ARGUMENT ...]`: SETTINGS is JSON and goes over ours, arguments go
to the worker. Lines of LOG: `start NAME PID`, `end NAME`, `told` when the worker hears that it shall stop.
"""

import json
import os
import sys
import time
from pathlib import Path

from celery.signals import worker_shutting_down

from luthier.queue import make_celery

url, log, settings, *arguments = sys.argv[1:]
app = make_celery(url)
app.conf.update(json.loads(settings))


def tell(line: str) -> None:
    with Path(log).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


@app.task(name="contract")
def work(name: str, what: str) -> None:
    """`quick`, `memory error`, `seconds N`, or the path of a file to wait for."""
    tell(f"start {name} {os.getpid()}")
    if what == "memory error":
        raise MemoryError(name)
    if what.startswith("seconds "):
        time.sleep(float(what.split()[1]))
    while what.startswith("/") and not Path(what).exists():
        time.sleep(0.02)
    tell(f"end {name}")


worker_shutting_down.connect(lambda **_: tell("told"), weak=False)
app.worker_main(["worker", "--queues=cpu", "--without-mingle", "--without-gossip", *arguments])
