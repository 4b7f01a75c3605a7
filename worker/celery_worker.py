"""A Celery worker for one queue and one device: `python -P -m worker.celery_worker --queue train --device 0`.

Its pool process answers doorbells by draining the queue. When the worker is told to stop, the event that the
pool process inherited at its fork has the current run save and stop.
"""

import argparse
import multiprocessing
import os
import sys

from celery.signals import worker_shutting_down

from luthier.devices import choose_devices, list_gpus
from luthier.errors import LuthierError
from luthier.logs import configure_logs
from luthier.queue import make_celery
from luthier.settings import Settings
from luthier.status import Queue
from worker.agent import make_agent
from worker.tasks import register_tasks


def main(arguments: list[str]) -> None:
    """Run the worker until it is told to stop."""
    parser = argparse.ArgumentParser(prog="worker.celery_worker", description=__doc__)
    parser.add_argument("--queue", required=True, choices=[str(queue) for queue in Queue])
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU by index or UUID")
    options = parser.parse_args(arguments)
    settings = Settings()
    configure_logs(settings)
    if settings.redis_url is None:
        raise LuthierError("LUTHIER_REDIS_URL is not set: a Celery worker needs a broker", "server_error")
    queue = Queue(options.queue)
    device = choose_devices(options.device, list_gpus())[0]
    app = make_celery(settings.redis_url.get_secret_value())
    stopping = multiprocessing.Event()
    register_tasks(app, lambda: make_agent(settings, queue, device.id, stopping))
    worker_shutting_down.connect(lambda **_: stopping.set(), weak=False)
    # SIGTERM starts Celery's soft shutdown, which waits for the run to save.
    os.environ["REMAP_SIGTERM"] = "SIGQUIT"
    app.worker_main(
        [
            "worker",
            f"--hostname={queue}-{device.id}-{os.getpid()}@%h",
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
