"""One run of a job, from claim to its last row, with a real child process that behaves as told."""

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import select

from luthier import repository
from luthier.artifacts import sha256_of, verify
from luthier.database import clock
from luthier.installation import Installation
from luthier.service import control, files, sweep
from luthier.service.errands import ConvertErrand, ErrandFile
from luthier.service.retries import Limits
from luthier.status import Queue, State
from luthier.tables import File, Job, JobEvent, Run
from tests.factories import CALLER, create_job
from tests.waiting import later, wait_for
from worker.agent import Agent

MakeAgent = Callable[..., Agent]
JobOf = Callable[[str], Job]


def _cancel(installation: Installation, job_id: str) -> None:
    with installation.database.transaction() as session:
        control.request_cancel(session, session.get_one(Job, job_id), now=clock(session))


def test_a_job_runs_to_its_end_and_its_artifacts_hold(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    make_agent(Queue.TRAIN, "done").drain()
    job = job_of(prepared_job)
    assert (job.state, job.step, job.trained_tokens, job.error_message) == (State.SUCCEEDED, 4, 12, None)
    with installation.database.reading() as session:
        artifacts = repository.list_artifacts(session, job.id)
        result_file = session.get_one(File, job.result_file)
    assert [item.name for item in artifacts] == ["adapter/adapter_config.json", "metrics.csv"]
    for item in (*artifacts, result_file):
        assert sha256_of(installation.storage.path(item.storage_key)) == item.sha256


def test_checkpoints_and_log_are_published(
    installation: Installation, make_agent: MakeAgent, prepared_job: str
) -> None:
    make_agent(Queue.TRAIN, "done").drain()
    with installation.database.reading() as session:
        checkpoints = repository.all_checkpoints(session, prepared_job)
    assert [(item.step, item.metrics) for item in checkpoints] == [
        (2, {"train_loss": 2.0, "eval_loss": None})
    ]
    verify(installation.storage.path(checkpoints[0].storage_key))
    log = installation.storage.path(f"{prepared_job}/e0001/log.txt")
    assert log.read_text() == "the child speaks\n"


def test_nothing_is_left_of_the_run_folder(
    installation: Installation, make_agent: MakeAgent, prepared_job: str
) -> None:
    make_agent(Queue.TRAIN, "done").drain()
    assert [path for path in installation.settings.runs.rglob("*") if path.is_file()] == []


def test_bad_data_in_preparation_fails_the_training_job_with_the_childs_words(
    installation: Installation, make_agent: MakeAgent, job_of: JobOf
) -> None:
    with installation.database.transaction() as session:
        job_id = create_job(session, "ftjob-2", model="tiny").id
    make_agent(Queue.CPU, "bad data").drain()
    job = job_of(job_id)
    assert (job.state, job.error_code, job.error_message, job.error_param) == (
        State.FAILED,
        "invalid_training_file",
        "Line 3",
        "training_file",
    )


def test_where_memory_ran_out_stands_on_the_job(
    make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    make_agent(Queue.TRAIN, "out of memory").drain()
    job = job_of(prepared_job)
    assert (job.state, job.error_code) == (State.FAILED, "out_of_memory")
    memory, advice = job.error_details or []
    assert (memory["step"], memory["peak_memory_bytes"], memory["longest_row_tokens"]) == (3, 8 << 30, 900)
    assert advice == {"loc": "qlora.max_seq_length", "message": "set max_seq_length to 512 (now 1024)"}


def test_cancel_of_a_running_job_keeps_its_checkpoint(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    def cancel_when_training() -> None:
        wait_for(lambda: job_of(prepared_job).phase == "training")
        _cancel(installation, prepared_job)

    thread = later(cancel_when_training)
    make_agent(Queue.TRAIN, "wait").drain()
    thread.join()
    assert job_of(prepared_job).state == State.CANCELLED
    with installation.database.reading() as session:
        assert [item.step for item in repository.all_checkpoints(session, prepared_job)] == [3]


def test_a_child_that_ignores_the_wish_is_killed_after_the_grace(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    def cancel_when_running() -> None:
        wait_for(lambda: job_of(prepared_job).state == State.RUNNING)
        _cancel(installation, prepared_job)

    thread = later(cancel_when_running)
    make_agent(Queue.TRAIN, "stubborn").drain()
    thread.join()
    with installation.database.reading() as session:
        run = repository.list_runs(session, prepared_job)[0]
    assert (job_of(prepared_job).state, run.exit_code) == (State.CANCELLED, -9)


def test_an_agent_that_makes_room_queues_the_job_and_the_next_one_resumes_it(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    stopping = threading.Event()

    def stop_when_training() -> None:
        wait_for(lambda: job_of(prepared_job).phase == "training")
        stopping.set()

    thread = later(stop_when_training)
    make_agent(Queue.TRAIN, "wait", stopping).drain()
    thread.join()
    assert job_of(prepared_job).state == State.QUEUED
    make_agent(Queue.TRAIN, "done").drain()
    with installation.database.reading() as session:
        found = repository.list_runs(session, prepared_job)
    assert [(run.outcome, run.from_step) for run in found] == [("stopped", 0), ("succeeded", 3)]


def test_a_child_that_a_wish_reaches_before_it_can_hear_counts_as_stopped(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    stopping = threading.Event()
    thread = later(lambda: (wait_for(lambda: job_of(prepared_job).state == State.RUNNING), stopping.set()))
    make_agent(Queue.TRAIN, "deaf", stopping).drain()
    thread.join()
    with installation.database.reading() as session:
        (run,) = repository.list_runs(session, prepared_job)
    assert (job_of(prepared_job).state, run.outcome, run.exit_code) == (State.QUEUED, "stopped", -15)


def test_a_crash_is_tried_again_from_the_checkpoint_and_then_given_up(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    agent = make_agent(Queue.TRAIN, "crash")
    agent.drain()
    job = job_of(prepared_job)
    assert (job.state, job.error_code) == (State.FAILED, "process_crashed")
    with installation.database.reading() as session:
        found = repository.list_runs(session, prepared_job)
    assert [(run.outcome, run.exit_code, run.from_step) for run in found] == [
        ("crashed", -11, 0),
        ("crashed", -11, 2),
    ]


def test_a_damaged_checkpoint_is_passed_over_and_told_of(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    stopping = threading.Event()
    thread = later(lambda: (wait_for(lambda: job_of(prepared_job).phase == "training"), stopping.set()))
    make_agent(Queue.TRAIN, "wait", stopping).drain()
    thread.join()
    with installation.database.reading() as session:
        key = repository.all_checkpoints(session, prepared_job)[0].storage_key
    (installation.storage.path(key) / "adapter.txt").write_text("another", encoding="utf-8")
    make_agent(Queue.TRAIN, "done").drain()
    with installation.database.reading() as session:
        kinds = session.scalars(select(JobEvent.kind).where(JobEvent.job_id == prepared_job)).all()
        run = session.get_one(Run, (prepared_job, 2))
    assert "checkpoint_damaged" in kinds
    assert run.from_step == 0


def test_a_child_without_a_last_word_fails_the_job_and_points_to_the_log(
    make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    make_agent(Queue.TRAIN, "speechless").drain()
    job = job_of(prepared_job)
    assert (job.state, job.error_code) == (State.FAILED, "server_error")
    assert f"/jobs/{prepared_job}/logs" in (job.error_message or "")


def test_a_preparation_without_a_last_word_points_to_the_log_of_the_job(
    installation: Installation, make_agent: MakeAgent, job_of: JobOf
) -> None:
    with installation.database.transaction() as session:
        job_id = create_job(session, model="tiny").id
    make_agent(Queue.CPU, "speechless").drain()
    assert f"/jobs/{job_id}/logs" in (job_of(job_id).error_message or "")


def test_a_run_that_lost_its_lease_writes_nothing_more(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    def take_away() -> None:
        wait_for(lambda: job_of(prepared_job).phase == "training")
        with installation.database.transaction() as session:
            later = clock(session) + timedelta(seconds=100)
            sweep.sweep(session, limits=Limits(9, 9, 9), jitter=0, now=later, at_most=None)
        agent.stopping.set()

    agent = make_agent(Queue.TRAIN, "wait")
    thread = later(take_away)
    agent.drain()
    thread.join()
    assert job_of(prepared_job).state == State.QUEUED
    with installation.database.reading() as session:
        assert repository.all_checkpoints(session, prepared_job) == []


def test_a_flood_of_output_is_cut(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    make_agent(Queue.TRAIN, "flood", max_log_bytes=65536).drain()
    log = installation.storage.path(f"{prepared_job}/e0001/log.txt")
    assert job_of(prepared_job).state == State.SUCCEEDED
    assert 0 < log.stat().st_size <= 65536 + 65536


def test_a_second_agent_on_the_same_device_claims_nothing(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    first, second = make_agent(Queue.TRAIN, "wait"), make_agent(Queue.TRAIN, "done")
    with installation.database.transaction() as session:
        other = create_job(session, "ftjob-2", model="tiny").id
    make_agent(Queue.CPU, "done").drain()

    def try_second() -> None:
        wait_for(lambda: job_of(prepared_job).phase == "training")
        second.drain()
        first.stopping.set()

    thread = later(try_second)
    first.drain()
    thread.join()
    assert job_of(other).run_count == 0


@pytest.mark.parametrize("queue", list(Queue))
def test_an_agent_with_nothing_to_do_returns(make_agent: MakeAgent, queue: Queue) -> None:
    make_agent(queue, "crash").drain()


def test_a_conversion_whose_file_was_deleted_leaves_no_bytes(
    installation: Installation, make_agent: MakeAgent, job_of: JobOf
) -> None:
    errand = ConvertErrand(file=ErrandFile(file_id="file-train"))
    with installation.database.transaction() as session:
        source = session.get_one(File, "file-train")
        names = {"key": "k", "filename": "qa.jsonl", "file_id": "file-2", "work_id": "work-c"}
        made = files.convert(session, CALLER, source, errand, **names, now=clock(session))
        # As when it is deleted after the child was asked to stop too late.
        session.delete(made)
    make_agent(Queue.CPU, "done").drain()
    assert job_of("work-c").state == State.SUCCEEDED
    assert not installation.storage.path("files/file-2").exists()
