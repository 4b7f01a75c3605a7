"""Doorbells over Celery: a message carries an id and means "look into the database".

Losing, repeating or reordering messages is harmless, so they are acknowledged as they start and kept nowhere.
The settings here are the ones that both sides need; `worker/celery_app.py` adds the tasks.
"""

from celery import Celery
from kombu.entity import Queue as CeleryQueue

from luthier.status import Queue

TASK_NAME = "luthier.drain"
_VISIBILITY_SECONDS = 3600
# Longer than the time that a trainer has for its last checkpoint (LUTHIER_STOP_GRACE_SECONDS).
_SOFT_SHUTDOWN_SECONDS = 150.0


def make_celery(redis_url: str) -> Celery:
    """A Celery application for doorbells. Making it connects to nothing.

    Each setting answers a measured fault of the defaults: see docs/decisions/0001.
    """
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
        worker_soft_shutdown_timeout=_SOFT_SHUTDOWN_SECONDS,
        worker_enable_soft_shutdown_on_idle=False,
        broker_connection_retry_on_startup=True,
        broker_connection_retry=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        broker_transport_options={
            "visibility_timeout": _VISIBILITY_SECONDS,
            "socket_timeout": 15,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "retry_on_timeout": True,
            "global_keyprefix": "luthier:",
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
        },
        visibility_timeout=_VISIBILITY_SECONDS,
        result_backend_transport_options={"visibility_timeout": _VISIBILITY_SECONDS},
        task_publish_retry_policy={
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.2,
            "interval_max": 0.2,
        },
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


def ring_doorbell(app: Celery, queue: str, job_id: str) -> None:
    """Send one message.

    Raises:
        kombu.exceptions.OperationalError: the broker cannot be reached; the caller tries again later.
    """
    app.send_task(TASK_NAME, args=[job_id], queue=queue)
