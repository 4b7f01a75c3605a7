"""The random run: jobs are submitted and trained while everything is killed, and then nothing is amiss.

Entered by `RandomRun.run`. Faults come in the order of the seed, spread over the jobs: the next one is due
when its share of them has ended. All processes are started here, in the thread that calls.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from luthier.status import FINAL, LEASED, Kind, State
from luthier.tables import Job, Leader, Outbox, Run
from tests.brokers import Broker
from tests.chaos.client import PatientClient
from tests.chaos.invariants import Scene, check_all, processes_of
from tests.chaos.schedule import Fault, Planned, draw_schedule
from tests.chaos.servers import OwnPostgres
from tests.chaos.site import CANARY, Site

_LOOK_SECONDS = 0.1
_PROBE_SECONDS = 0.05
# How many jobs wait or run at a time, at most: submits then go on as long as faults do.
_BACKLOG = 12
# Without a job that ends for so long, a run is given up.
_STALL_SECONDS = 240.0
# A fault waits for so many looks for somebody who works.
_PATIENT_LOOKS = 20
Found = TypeVar("Found")


@dataclass(frozen=True)
class Plan:
    """What a random run is made of.

    Attributes:
        cancel_share, pause_share: of the jobs whose owner has another wish after a moment of at most
            `wish_seconds`; who pauses a job resumes it.
    """

    seed: int
    job_count: int
    faults: dict[Fault, int]
    steps: int = 6
    save_steps: int = 2
    submitter_count: int = 2
    cancel_share: float = 0.05
    pause_share: float = 0.05
    wish_seconds: float = 1.0


@dataclass
class Happened:
    """A fault that was made.

    Attributes:
        at, back_at: seconds of the Unix clock.
        in_hand: jobs, with their epochs, that whoever was hit worked on.
        healed_at: when the effect that is measured for this fault was over; None where there was none.
    """

    fault: Fault
    at: float
    back_at: float = 0.0
    in_hand: list[tuple[str, int]] = field(default_factory=list)
    healed_at: float | None = None


@dataclass
class Outcome:
    """What came of a run: accepted jobs, faults, what is broken, and how long all of it took."""

    plan: Plan
    accepted: dict[str, list[State]]
    happened: list[Happened]
    broken: list[str]
    seconds: float
    repeated_calls: int


class RandomRun:
    """One run over a site that is running.

    Args:
        broker, postgres: the site's servers, where it has them.
        say: called with a line for people now and then.
    """

    def __init__(
        self,
        site: Site,
        plan: Plan,
        *,
        broker: Broker | None = None,
        postgres: OwnPostgres | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._site, self._plan, self._say = site, plan, say
        self._broker, self._postgres = broker, postgres
        self._client = PatientClient(site.url, site.key)
        self._accepted: dict[str, list[State]] = {}
        self._happened: list[Happened] = []
        self._returns: list[tuple[float, Callable[[], None]]] = []
        self._ended_count = 0
        self._problems: list[str] = []

    def run(self) -> Outcome:
        """Submit, train, break things, wait for the end of every job, end the site, and look at what is."""
        began = time.monotonic()
        file_id = self._client.upload()
        numbers = iter(range(1, self._plan.job_count + 1))
        with self._submitting(file_id, numbers), self._probing() as outages:
            self._break_things()
        self._drain()
        self._site.end()
        self._measure(outages)
        repeated = self._client.repeated_count
        self._client.close()
        broken = self._problems + check_all(self._scene())
        return Outcome(self._plan, self._accepted, self._happened, broken, time.monotonic() - began, repeated)

    def _scene(self) -> Scene:
        return Scene(
            self._site.database,
            self._site.storage,
            self._site.folder,
            self._accepted,
            secrets=(CANARY, self._site.key),
            searched=[self._site.folder, *([self._postgres.data] if self._postgres else [])],
        )

    # Submits and probes: threads of their own.

    @contextmanager
    def _submitting(self, file_id: str, numbers: Iterator[int]) -> Iterator[None]:
        lock = threading.Lock()

        def submit() -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                while len(self._accepted) - self._ended_count > _BACKLOG and not self._problems:
                    time.sleep(_PROBE_SECONDS)
                try:
                    self._own(file_id, number)
                except Exception as error:  # noqa: BLE001, the edge of a thread: the run tells of it
                    self._problems.append(f"submit {number}: {error}")
                    return

        threads = [threading.Thread(target=submit) for _ in range(self._plan.submitter_count)]
        for thread in threads:
            thread.start()
        yield
        for thread in threads:
            thread.join()

    def _own(self, file_id: str, number: int) -> None:
        """Submit a job and have the wishes that its number draws."""
        plan, draws = self._plan, random.Random(f"{self._plan.seed}/{number}")
        job_id = self._client.submit(file_id, number, steps=plan.steps, save_steps=plan.save_steps)
        self._accepted[job_id] = [State.SUCCEEDED]
        draw = draws.random()
        if draw < plan.cancel_share:
            self._accepted[job_id] = [State.SUCCEEDED, State.CANCELLED]
            time.sleep(draws.uniform(0, plan.wish_seconds))
            self._client.wish(job_id, "cancel")
        elif draw < plan.cancel_share + plan.pause_share:
            time.sleep(draws.uniform(0, plan.wish_seconds))
            self._client.wish(job_id, "pause")
            time.sleep(draws.uniform(0, plan.wish_seconds))
            self._client.wish(job_id, "resume")

    @contextmanager
    def _probing(self) -> Iterator[list[tuple[float, float]]]:
        """Times in which the API did not answer, as they come to be known."""
        outages: list[tuple[float, float]] = []
        done = threading.Event()
        client = PatientClient(self._site.url, self._site.key)

        def probe() -> None:
            since: float | None = None
            while not done.wait(_PROBE_SECONDS):
                asked_at = time.time()
                if not client.is_answered():
                    since = since or asked_at
                elif since is not None:
                    outages.append((since, time.time()))
                    since = None

        thread = threading.Thread(target=probe)
        thread.start()
        yield outages
        done.set()
        thread.join()
        client.close()

    # The faults: in the thread that calls.

    def _break_things(self) -> None:
        schedule = list(draw_schedule(self._plan.seed, self._plan.faults))
        made, next_at, moved_at = 0, 0.0, time.monotonic()
        leader: str | None = None
        while not self._problems:
            now = time.monotonic()
            self._come_back(now)
            ended = self._count_ended()
            if ended is not None and ended != self._ended_count:
                self._ended_count, moved_at = ended, now
            leader = self._watch_leader(leader)
            if self._ended_count >= self._plan.job_count and not self._returns:
                break
            if now - moved_at > _STALL_SECONDS:
                self._problems.append(f"no job ended for {_STALL_SECONDS:.0f} s: {self._ended_count} have")
                break
            share = made / max(1, len(schedule))
            if made < len(schedule) and now >= next_at and self._ended_count >= share * self._plan.job_count:
                self._make(schedule[made])
                made += 1
                next_at = time.monotonic() + schedule[min(made, len(schedule) - 1)].pause_seconds
            time.sleep(_LOOK_SECONDS)
        self._come_back(float("inf"))

    def _make(self, planned: Planned) -> None:
        happened = Happened(planned.fault, time.time())
        self._happened.append(happened)
        match planned.fault:
            case Fault.KILL_AGENT | Fault.STOP_AGENT:
                self._hit_agent(planned, happened)
            case Fault.KILL_TRAINER:
                self._hit_trainer(planned, happened)
            case Fault.KILL_API:
                self._hit_process("head/api", planned, happened)
            case Fault.KILL_DISPATCHER:
                self._hit_process("head/dispatcher", planned, happened)
            case Fault.KILL_REDIS if self._broker is not None:
                self._broker.kill()
                self._return(planned, happened, self._broker.restart)
            case Fault.FLUSH_REDIS if self._broker is not None:
                with suppress(ConnectionError):
                    self._broker.flush()
                happened.back_at = time.time()
            case Fault.STOP_POSTGRES if self._postgres is not None:
                self._postgres.stop_at_once()
                self._return(planned, happened, self._postgres.start)
            case _:
                raise ValueError(f"this site has nothing for {planned.fault}")
        self._say(f"{len(self._happened)} faults, {self._ended_count} jobs: {planned.fault}")

    def _hit_agent(self, planned: Planned, happened: Happened) -> None:
        """Of the hosts that are up, one that works on something, where there soon is one."""
        up = [host for host in self._site.hosts if all(self._is_up(name) for name in self._names(host))]
        busy = self._soon(lambda: {host: jobs for host, jobs in self._work_in_hand().items() if host in up})
        choice = list(busy or up)
        if not choice:
            return
        host = choice[int(planned.draw * len(choice))]
        names = self._names(host)
        happened.in_hand = (busy or {}).get(host, [])
        happened.at = time.time()
        if planned.fault == Fault.STOP_AGENT:
            for name in names:
                self._site.send(name, signal.SIGSTOP)
            self._return(planned, happened, lambda: self._wake(names))
        else:
            self._site.kill(*names)
            self._return(planned, happened, lambda: self._start(names))

    def _wake(self, names: Sequence[str]) -> None:
        for name in names:
            self._site.send(name, signal.SIGCONT)

    def _start(self, names: Sequence[str]) -> None:
        for name in names:
            self._site.start(name)

    def _hit_trainer(self, planned: Planned, happened: Happened) -> None:
        trainers = self._soon(self._trainers)
        if not trainers:
            return
        pid = trainers[int(planned.draw * len(trainers))]
        with suppress(ProcessLookupError, OSError):
            folder = Path(f"/proc/{pid}/cwd").readlink()
            happened.in_hand = [(folder.parent.name, int(folder.name.removeprefix("e")))]
            happened.at = time.time()
            os.kill(pid, signal.SIGKILL)
        happened.back_at = happened.at

    def _trainers(self) -> list[int]:
        return [pid for pid, command in processes_of(self._site.folder) if "scripted_trainer" in command]

    def _soon(self, find: Callable[[], Found]) -> Found | None:
        """What is found as soon as something is; None where it does not come."""
        for _ in range(_PATIENT_LOOKS):
            if found := find():
                return found
            time.sleep(_LOOK_SECONDS)
        return None

    def _hit_process(self, name: str, planned: Planned, happened: Happened) -> None:
        self._site.kill(name)
        self._return(planned, happened, lambda: self._site.start(name))

    def _return(self, planned: Planned, happened: Happened, come_back: Callable[[], object]) -> None:
        def again() -> None:
            come_back()
            happened.back_at = time.time()

        self._returns.append((time.monotonic() + planned.away_seconds, again))

    def _come_back(self, now: float) -> None:
        due = [one for one in self._returns if one[0] <= now]
        self._returns = [one for one in self._returns if one[0] > now]
        for _, again in due:
            again()

    def _is_up(self, name: str) -> bool:
        process = self._site.processes[name]
        if process.poll() is not None:
            return False
        state = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return state != "T"

    def _names(self, host: str) -> list[str]:
        return self._site.training_names[host]

    # What the database tells meanwhile; it may be away.

    def _work_in_hand(self) -> dict[str, list[tuple[str, int]]]:
        query = select(Job.lease_owner, Job.id, Job.lease_epoch).where(Job.state.in_(LEASED))
        found: dict[str, list[tuple[str, int]]] = {}
        with suppress(DBAPIError), self._site.database.reading() as session:
            for owner, job_id, epoch in session.execute(query):
                found.setdefault(str(owner).split("/")[0], []).append((job_id, epoch))
        return found

    def _count_ended(self) -> int | None:
        query = select(func.count()).where(Job.kind == Kind.TRAIN, Job.state.in_(FINAL))
        with suppress(DBAPIError), self._site.database.reading() as session:
            return session.scalar(query)
        return None

    def _watch_leader(self, before: str | None) -> str | None:
        """Note when somebody leads again after the dispatcher was killed."""
        with suppress(DBAPIError), self._site.database.reading() as session:
            holder = session.scalar(select(Leader.holder))
            if holder is not None and holder != before:
                for one in self._happened:
                    if one.fault == Fault.KILL_DISPATCHER and one.healed_at is None and one.back_at:
                        one.healed_at = time.time()
            return holder
        return before

    def _drain(self) -> None:
        """Wait until what was promised is sent, and no work is left, previews and preparations included."""
        deadline = time.monotonic() + _STALL_SECONDS
        while time.monotonic() < deadline and not self._problems:
            with suppress(DBAPIError), self._site.database.reading() as session:
                unsent = session.scalar(select(func.count()).where(Outbox.sent_at.is_(None)))
                live = session.scalar(select(func.count()).where(Job.state.not_in(FINAL)))
                if unsent == live == 0:
                    return
            time.sleep(_LOOK_SECONDS)

    def _measure(self, outages: Sequence[tuple[float, float]]) -> None:
        """When each fault was over, from the rows that it left and the answers that did not come."""
        with self._site.database.reading() as session:
            runs = {(run.job_id, run.epoch): run for run in session.scalars(select(Run))}
            sent = sorted(at.timestamp() for at in session.scalars(select(Outbox.sent_at)) if at is not None)
        for one in self._happened:
            match one.fault:
                case Fault.KILL_AGENT | Fault.STOP_AGENT | Fault.KILL_TRAINER:
                    one.healed_at = _next_start(one, runs)
                case Fault.KILL_API | Fault.STOP_POSTGRES:
                    ends = [end for start, end in outages if end >= one.at and start <= one.back_at + 1]
                    one.healed_at = min(ends, default=None)
                case Fault.KILL_REDIS | Fault.FLUSH_REDIS:
                    one.healed_at = next((at for at in sent if at > one.back_at), None)
                case Fault.KILL_DISPATCHER:
                    pass


def _next_start(one: Happened, runs: dict[tuple[str, int], Run]) -> float | None:
    """When the last of the jobs in hand ran again; None where all of them ended undisturbed."""
    started = []
    for job_id, epoch in one.in_hand:
        run, following = runs.get((job_id, epoch)), runs.get((job_id, epoch + 1))
        if run is not None and run.outcome != "succeeded" and following is not None:
            started.append(following.started_at.timestamp())
    return max(started, default=None)


def now_text() -> str:
    """Date and time for a report."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
