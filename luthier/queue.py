"""Doorbells over Celery: a message carries an id and means "look into the database".

Losing, repeating or reordering messages is harmless, so they are acknowledged as they start and kept nowhere.
The settings here are the ones that both sides need; `worker/tasks.py` adds the task. `docs/decisions/0001`
tells which fault each of them answers.
"""

from collections.abc import Sequence

from celery import Celery
from kombu.entity import Queue as CeleryQueue
from kombu.messaging import Producer

from luthier.status import Queue

TASK_NAME = "luthier.drain"
_VISIBILITY_SECONDS = 3600
# A consumer blocks for a second in BRPOP, so its sockets must be patient; a sender never waits for work.
_PATIENT = {"socket_timeout": 15, "socket_connect_timeout": 3, "retry_on_timeout": True}
_IMPATIENT = {"socket_timeout": 2, "socket_connect_timeout": 2, "retry_on_timeout": False}
_ONE_RETRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2}


def make_sender(redis_url: str) -> Celery:
    """An application that only sends: a broker that hangs holds it up for seconds, not for minutes."""
    app = make_celery(redis_url)
    app.conf.broker_transport_options = app.conf.broker_transport_options | _IMPATIENT
    return app


def make_celery(redis_url: str) -> Celery:
    """A Celery application for doorbells. Making it connects to nothing."""
    app = Celery("luthier", broker=redis_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_ignore_result=True,
        result_backend=None,
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        task_acks_on_failure=True,
        task_acks_on_timeout=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_concurrency=1,
        worker_pool="prefork",
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=0.0,
        worker_enable_soft_shutdown_on_idle=False,
        broker_connection_retry_on_startup=True,
        broker_connection_retry=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        broker_transport_options={
            "visibility_timeout": _VISIBILITY_SECONDS,
            **_PATIENT,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "global_keyprefix": "luthier:",
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
        },
        visibility_timeout=_VISIBILITY_SECONDS,
        result_backend_transport_options={"visibility_timeout": _VISIBILITY_SECONDS},
        task_publish_retry_policy=_ONE_RETRY,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        task_send_sent_event=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        enable_utc=True,
        task_create_missing_queues=False,
        task_queues=[CeleryQueue(str(queue)) for queue in Queue],  # type: ignore[no-untyped-call]
        task_default_queue=str(Queue.CPU),
        beat_schedule={},
    )
    return app


def ring_doorbells(app: Celery, queue: str, job_ids: Sequence[str], *, listeners: int) -> None:
    """Send one message for each id, but leave no more in the queue than there are workers to hear them.

    Whoever hears one works until nothing can be claimed, so more would only be taken off the queue again;
    and a queue that nobody hears cannot fill the broker.

    Raises:
        kombu.exceptions.OperationalError: the broker does not answer, or is full; some may have been sent.
    """
    with app.producer_or_acquire() as producer:
        room = max(1, listeners) - _count_waiting(producer, queue)
        for job_id in job_ids[: max(0, room)]:
            app.send_task(TASK_NAME, args=[job_id], queue=queue, producer=producer)


def _count_waiting(producer: Producer, queue: str) -> int:
    connection = producer.connection.ensure_connection(**_ONE_RETRY)
    ask = connection.ensure(producer, lambda: producer.channel.queue_declare(queue), **_ONE_RETRY)
    count: int = ask().message_count
    return count
