"""A Celery worker for one queue and one device: `python -P -m worker.celery_worker --queue train --device 0`.

Its pool process answers doorbells by draining the queue. When the worker is told to stop, the event that the
pool process inherited at its fork has the current run save and stop.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable

from celery.signals import worker_shutting_down

from luthier.devices import choose_devices, list_gpus
from luthier.errors import LuthierError
from luthier.logs import configure_logs
from luthier.queue import make_celery
from luthier.settings import Settings
from luthier.status import Queue
from worker.agent import Agent, make_agent
from worker.stop_flag import StopFlag
from worker.tasks import register_tasks


def main(arguments: list[str]) -> None:
    """Run the worker of a device of this host until it is told to stop."""
    parser = argparse.ArgumentParser(prog="worker.celery_worker", description=__doc__)
    parser.add_argument("--queue", required=True, choices=[str(queue) for queue in Queue])
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU by index or UUID")
    options = parser.parse_args(arguments)
    settings = Settings()
    configure_logs(settings)
    queue = Queue(options.queue)
    device = choose_devices(options.device, list_gpus())[0]
    listen(settings, queue, device.id, lambda stopping: make_agent(settings, queue, device.id, stopping))


def listen(settings: Settings, queue: Queue, device_id: str, make_agent: Callable[[StopFlag], Agent]) -> None:
    """Answer doorbells until told to stop.

    Args:
        make_agent: called in the pool process, with the flag that is set when the worker is told to stop.
    Raises:
        LuthierError: no broker is set.
    """
    if settings.redis_url is None:
        raise LuthierError("LUTHIER_REDIS_URL is not set: a Celery worker needs a broker", "server_error")
    app = make_celery(settings.redis_url.get_secret_value())
    stopping = multiprocessing.Event()
    register_tasks(app, lambda: make_agent(stopping))
    worker_shutting_down.connect(lambda **_: stopping.set(), weak=False)
    # SIGTERM is Celery's warm shutdown: it tells us at once and waits for the task, which saves and ends.
    # Celery's soft shutdown tells nobody before its whole timeout is over, and ends the task then.
    os.environ.pop("REMAP_SIGTERM", None)
    app.worker_main(
        [
            "worker",
            f"--hostname={queue}-{device_id}-{os.getpid()}@%h",
            f"--queues={queue}",
            "--concurrency=1",
            "--pool=prefork",
            "--without-mingle",
            "--without-gossip",
            "--loglevel=WARNING",
        ]
    )


if __name__ == "__main__":
    main(sys.argv[1:])
