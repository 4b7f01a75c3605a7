"""A real Celery worker on queue cpu whose children are scripted: `python doorbell_worker.py BEHAVIOUR`.

Settings come from the environment. `memory error` is an agent that fails so at its first ring.
"""

import sys
from pathlib import Path

from luthier.devices import Device
from luthier.ids import new_id
from luthier.installation import open_installation
from luthier.logs import configure_logs
from luthier.settings import Settings
from luthier.status import Kind, Queue
from worker.agent import Agent
from worker.celery_worker import listen
from worker.stop_flag import StopFlag

behaviour = sys.argv[1]
settings = Settings()


class Forgetful(Agent):
    """Runs out of memory at its first ring."""

    rings = 0

    def drain(self) -> None:
        self.rings += 1
        if behaviour == "memory error" and self.rings == 1:
            raise MemoryError("no byte is left")
        super().drain()


def command(_kind: Kind, folder: Path) -> list[str]:
    script = Path(__file__).with_name("scripted_child.py")
    child = "done" if behaviour == "memory error" else behaviour
    return [sys.executable, "-P", str(script), child, str(folder)]


def make_agent(stopping: StopFlag) -> Agent:
    return Forgetful(
        open_installation(settings),
        Queue.CPU,
        Device("cpu", "CPU"),
        host="host",
        instance_id=new_id("instance"),
        stopping=stopping,
        child_command=command,
    )


configure_logs(settings)
listen(settings, Queue.CPU, "cpu", make_agent)
