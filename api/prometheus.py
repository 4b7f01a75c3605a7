"""What Prometheus reads, taken from the database at each scrape: right for any number of API processes.

No label has an id. Counters come from sums that never shrink (`luthier.job_sums`); what can shrink (files may
be deleted) is a gauge.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy.orm import Session

from luthier import __version__, disk, statistics
from luthier.database import clock
from luthier.installation import Installation
from luthier.job_sums import Durations, JobSums, Sums
from luthier.service import backups, watching
from luthier.status import FINAL, BlockedOn, Queue, State, public_status

BOUNDS_SECONDS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 28800, 57600, 100800)
_BUCKETS = (*(str(float(bound)) for bound in BOUNDS_SECONDS), "+Inf")

_DOORBELL = "doorbell"
# Those that alerts ask for, so that they are there at 0; others appear with the first agent in them.
_WORKER_STATES = ("active", "sick")


class DatabaseCollector(Collector):
    """All metrics of an installation."""

    def __init__(self, installation: Installation, job_sums: JobSums) -> None:
        self._installation = installation
        self._job_sums = job_sums

    def collect(self) -> Iterator[Metric]:
        yield _gauge("luthier_build_info", "The release that answers", ["version"], [((__version__,), 1)])
        with self._installation.database.reading() as session:
            sums = self._job_sums.read(session, now=clock(session))
            yield from _jobs(sums)
            yield from _times(sums)
            yield from _queues(session, self._installation.settings.lease_seconds)
            yield from _services(session, self._installation.settings.lease_seconds)
            yield from _training(session, sums)
            yield from _data(session, sums)
            last = backups.find_last(session)
            text = "When the last whole backup was made; 0 where there is none"
            at = last.made_at.timestamp() if last else 0.0
            yield _gauge("luthier_last_backup_timestamp_seconds", text, [], [((), at)])
        room = float(disk.has_room(self._installation))
        yield _gauge("luthier_disk_has_room", "1 where new work is taken on, else 0", [], [((), room)])
        free = self._installation.storage.free_bytes()
        if free is not None:
            text = "Free space of the storage folder's disk"
            yield _gauge("luthier_storage_free_bytes", text, [], [((), free)])


def _jobs(sums: Sums) -> Iterator[Metric]:
    now: Counter[str] = Counter({public_status(state): 0 for state in State})
    inside: Counter[State] = Counter(dict.fromkeys(State, 0))
    created: Counter[tuple[str, ...]] = Counter()
    finished: Counter[tuple[str, ...]] = Counter()
    for found in sums.counts():
        now[public_status(found.state)] += found.count
        inside[found.state] += found.count
        created[(found.method,)] += found.count
        if found.state in FINAL:
            finished[(public_status(found.state), found.error_code or "")] += found.count
    yield _gauge(
        "luthier_jobs",
        "Training jobs by status",
        ["status"],
        [((name,), count) for name, count in now.items()],
    )
    states = [((str(state),), count) for state, count in inside.items()]
    text = "The same by inner state, of which several are one status"
    yield _gauge("luthier_jobs_by_state", text, ["state"], states)
    yield _counter("luthier_jobs_created", "Training jobs that were submitted", ["method"], created.items())
    labels = ["status", "error_class"]
    yield _counter("luthier_jobs_finished", "Training jobs that have ended", labels, finished.items())


def _times(sums: Sums) -> Iterator[Metric]:
    yield _histogram(
        "luthier_job_queue_wait_seconds",
        "From when work could be claimed to its first claim",
        ["queue"],
        sums.queue_waits(),
    )
    times = [
        replace(item, labels=(item.labels[0], public_status(State(item.labels[1]))))
        for item in sums.run_times()
    ]
    yield _histogram(
        "luthier_job_run_seconds",
        "From the first claim to the end of training jobs",
        ["method", "status"],
        times,
    )


def _queues(session: Session, lease_seconds: float) -> Iterator[Metric]:
    now = clock(session)
    loads = {load.queue: load for load in statistics.queue_loads(session)}
    online = statistics.count_workers(session, since=now - timedelta(seconds=lease_seconds))
    depth, age, slots, busy = [], [], [], []
    for queue in Queue:
        load = loads.get(queue)
        oldest_at = load.oldest_at if load else None
        depth.append(((queue,), load.depth if load else 0))
        age.append(((queue,), (now - oldest_at).total_seconds() if oldest_at else 0.0))
        slots.append(((queue,), online.get(queue, 0)))
        busy.append(((queue,), load.running if load else 0))
    label = ["queue"]
    yield _gauge("luthier_queue_depth", "Work that could be claimed now", label, depth)
    yield _gauge("luthier_queue_oldest_age_seconds", "How long the oldest of it has waited", label, age)
    yield _gauge("luthier_workers_online", "Agents that were heard of within a lease", label, slots)
    yield _gauge("luthier_worker_slots", "Jobs that they can work on at once: one each", label, slots)
    yield _gauge("luthier_worker_slots_busy", "Jobs that are being worked on", label, busy)


def _services(session: Session, lease_seconds: float) -> Iterator[Metric]:
    """Whether those who keep jobs going do so."""
    now = clock(session)
    until = statistics.leads_until(session)
    leads = until is not None and until >= now
    yield _gauge("luthier_dispatcher_leads", "1 where a dispatcher leads, else 0", [], [((), float(leads))])
    text = "How often a dispatcher came to lead: it grows with each change"
    yield _counter("luthier_dispatcher_changes", text, [], [((), statistics.leader_epoch(session))])
    reasons = dict.fromkeys((watching.RETRY, *map(str, BlockedOn)), 0) | watching.count_waiting(session)
    text = "Jobs that wait for their next try, or for what blocks them"
    waits = [((reason,), count) for reason, count in reasons.items()]
    yield _gauge("luthier_jobs_waiting", text, ["reason"], waits)
    known = {(str(queue), state): 0 for queue in Queue for state in _WORKER_STATES}
    found = statistics.count_worker_states(session, since=now - timedelta(seconds=lease_seconds))
    text = "Agents that were heard of within a lease, by their state"
    yield _gauge("luthier_workers", text, ["queue", "state"], (known | found).items())
    waiting, age = {(_DOORBELL,): 0.0}, {(_DOORBELL,): 0.0}
    for backlog in statistics.outbox_backlogs(session):
        waiting[(backlog.topic,)] = backlog.count
        age[(backlog.topic,)] = max(0.0, (now - backlog.oldest_at).total_seconds())
    yield _gauge("luthier_outbox_waiting", "Messages that have not been sent", ["topic"], waiting.items())
    text = "How long the oldest of them has waited"
    yield _gauge("luthier_outbox_oldest_age_seconds", text, ["topic"], age.items())


def _training(session: Session, sums: Sums) -> Iterator[Metric]:
    newest = statistics.newest_step_at(session)
    if newest is not None:
        text = "When a running job last reported a step"
        yield _gauge("luthier_last_step_timestamp_seconds", text, [], [((), newest.timestamp())])
    trained = sums.trained()
    tokens = [((item.method,), item.tokens) for item in trained]
    steps = [((item.method,), item.steps) for item in trained]
    yield _counter("luthier_train_tokens", "Tokens trained on by ended jobs", ["method"], tokens)
    yield _counter("luthier_train_steps", "Optimizer steps that were taken", ["method"], steps)


def _data(session: Session, sums: Sums) -> Iterator[Metric]:
    validations = [((name,), count) for name, count in sums.validations().items()]
    text = "Validations on the queue, of files too large to be checked in the upload"
    yield _counter("luthier_dataset_validations", text, ["result"], validations)
    stored = statistics.stored_bytes(session)
    uploads = [((), stored.get("fine-tune", 0))]
    yield _gauge("luthier_uploads_bytes", "Bytes of uploaded files that are kept", [], uploads)
    kinds = [((kind,), size) for kind, size in stored.items()]
    yield _gauge("luthier_storage_bytes", "Bytes of files, checkpoints and artifacts", ["kind"], kinds)


Samples = Iterable[tuple[tuple[str, ...], float]]


def _gauge(name: str, text: str, labels: Sequence[str], samples: Samples) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=labels)
    for values, number in samples:
        metric.add_metric(values, number)
    return metric


def _counter(name: str, text: str, labels: Sequence[str], samples: Samples) -> Metric:
    metric = CounterMetricFamily(name, text, labels=labels)
    for values, number in samples:
        metric.add_metric(values, number)
    return metric


def _histogram(name: str, text: str, labels: Sequence[str], found: Iterable[Durations]) -> Metric:
    metric = HistogramMetricFamily(name, text, labels=labels)
    for item in found:
        metric.add_metric(item.labels, list(zip(_BUCKETS, item.counts, strict=True)), item.sum_seconds)
    return metric
