"""`luthier worker`: the agents of this host, kept alive.

Each device of the train queue, and one place on the CPU for the cpu queue, has a polling agent; with a broker
it also has a Celery worker that a doorbell wakes at once. Whoever of the two has the device's lock works. One
more agent does errands alone, such as previews, so that a long preparation does not hold them up.
"""

import argparse
import sys

import structlog

from luthier.devices import CPU, choose_devices, list_gpus
from luthier.logs import configure_logs
from luthier.processes import ChildSpec, ProcessGroup, module_command
from luthier.settings import Settings
from luthier.status import Queue

log = structlog.get_logger()
# After the trainer's time to save: to publish what it saved, and to record it.
_ENDING_SECONDS = 30.0


def main(arguments: list[str]) -> None:
    """Start the agents and keep them alive until told to stop."""
    parser = argparse.ArgumentParser(prog="worker", description=__doc__)
    parser.add_argument("--queue", action="append", choices=[str(queue) for queue in Queue])
    options = parser.parse_args(arguments)
    settings = Settings()
    configure_logs(settings)
    queues = [Queue(name) for name in options.queue or [str(queue) for queue in Queue]]
    children = [child for queue in queues for child in children_of(settings, queue)]
    ProcessGroup(
        children,
        grace_seconds=grace_seconds(settings),
        report=lambda line: log.warning("child", line=line),
    ).run()


def grace_seconds(settings: Settings) -> float:
    """How long this process waits for its agents to end; whoever stops it must wait longer."""
    return settings.stop_grace_seconds + _ENDING_SECONDS


def children_of(settings: Settings, queue: Queue) -> list[ChildSpec]:
    """The processes that serve a queue on this host."""
    train = queue == Queue.TRAIN
    devices = [device.id for device in choose_devices(settings.gpus, list_gpus())] if train else [CPU]
    poll = settings.doorbell_poll_seconds if settings.redis_url else settings.poll_seconds
    children = []
    for device in devices:
        place = ["--queue", str(queue), "--device", device]
        command = module_command("worker.agent", *place, "--poll-seconds", str(poll))
        children.append(ChildSpec(f"{queue} agent on {device}", command))
        if settings.redis_url is not None:
            command = module_command("worker.celery_worker", *place)
            children.append(ChildSpec(f"{queue} doorbell on {device}", command))
    if queue == Queue.CPU:
        # Somebody waits for these: no doorbell is faster than a short poll.
        place = ["--queue", str(queue), "--errands", "--poll-seconds", str(settings.poll_seconds)]
        children.append(ChildSpec("errands agent", module_command("worker.agent", *place)))
    return children


if __name__ == "__main__":
    main(sys.argv[1:])
