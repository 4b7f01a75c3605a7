"""The one Celery task: a doorbell. What it carries is ignored; the database says what there is to do."""

import threading
from collections.abc import Callable

import structlog
from celery import Celery

from luthier.queue import TASK_NAME
from worker.agent import Agent

log = structlog.get_logger()


def register_tasks(app: Celery, make_agent: Callable[[], Agent]) -> None:
    """Give the application its task. `make_agent` is called once, in the pool process, at the first ring."""
    agents: list[Agent] = []
    lock = threading.Lock()

    def drain(job_id: str) -> None:
        """Work until the queue is empty. Nothing may escape: a MemoryError would end the whole worker."""
        with lock:
            if not agents:
                agents.append(make_agent())
        try:
            agents[0].drain()
        except Exception:
            log.exception("drain_failed", job_id=job_id)
        except MemoryError as error:
            log.error("out_of_memory", job_id=job_id, reason=str(error))

    app.task(name=TASK_NAME)(drain)
