"""Base models are fetched with the project's own secret; a job whose secret is missing waits for it."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from luthier.database import clock
from luthier.installation import Installation
from luthier.models import find_model
from luthier.service import project_secrets
from luthier.settings import Settings
from luthier.status import BlockedOn, Queue, State
from luthier.tables import Job, JobEvent
from tests.factories import CALLER, create_job
from tests.hub import Hub, model_files, running_hub
from worker.agent import Agent

MODEL, TOKEN = "Qwen/Tiny", "hf_CanaryCanaryCanary"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model, which it gives for a token."""
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.models[MODEL], hub.token = model_files(), TOKEN
        yield hub


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """The usual settings with an empty model folder, and a token that opens nothing."""
    return settings.model_copy(update={"model_dir": tmp_path / "models"})


def _submit(installation: Installation, **fields: Any) -> str:
    with installation.database.transaction() as session:
        return create_job(session, model=MODEL, **fields).id


def _put(installation: Installation, name: str, value: str = TOKEN) -> None:
    with installation.database.transaction() as session:
        project_secrets.put(
            session, CALLER.project_id, name=name, value=value, secret_id=f"sec-{name}", api_key_id=None,
            installation_key=installation.installation_key, now=clock(session),
        )  # fmt: skip


def _work_of(session: Session, job_id: str) -> Job:
    """The preparation of a job, which is what fetches its model."""
    return session.query(Job).filter(Job.subject_job_id == job_id).one()


def _state(installation: Installation, job_id: str) -> tuple[str, str | None]:
    with installation.database.reading() as session:
        work = _work_of(session, job_id)
        return work.state, work.blocked_on


def test_a_model_is_fetched_with_the_secret_that_the_job_names(
    installation: Installation, make_agent: Callable[..., Agent], hub: Hub
) -> None:
    _put(installation, "mine")
    job_id = _submit(installation, hub_token={"secret": "mine"})
    with installation.database.transaction() as session:
        session.delete(project_secrets.get_secret(session, CALLER.project_id, "mine"))
    make_agent(Queue.CPU, "done").drain()
    assert _state(installation, job_id) == (State.BLOCKED, BlockedOn.SECRET)
    assert hub.asked == []
    _put(installation, "mine")
    make_agent(Queue.CPU, "done").drain()
    assert find_model(installation.settings.models, MODEL) is not None
    assert _state(installation, job_id) == (State.SUCCEEDED, None)
    with installation.database.reading() as session:
        told = [event.message for event in session.query(JobEvent)]
    assert [text for text in told if "'mine'" in text]
    assert not [text for text in told if TOKEN in text]


def test_a_projects_default_token_goes_before_the_installations(
    installation: Installation, make_agent: Callable[..., Agent], hub: Hub
) -> None:
    job_id = _submit(installation)
    _put(installation, project_secrets.DEFAULT_HUB_TOKEN)
    make_agent(Queue.CPU, "done").drain()
    assert _state(installation, job_id) == (State.SUCCEEDED, None)
    assert {asked.headers.get("authorization") for asked in hub.asked} >= {f"Bearer {TOKEN}"}


def test_f56_jobs_wait_while_the_key_of_stored_secrets_is_missing(
    installation: Installation, make_agent: Callable[..., Agent], hub: Hub
) -> None:
    """F56: what was sealed under another key is not opened; the job goes on once the key is back."""
    lost = dataclasses.replace(installation, installation_key=b"another")
    _put(lost, "mine")
    job_id = _submit(installation, hub_token={"secret": "mine"})
    make_agent(Queue.CPU, "done").drain()
    assert _state(installation, job_id) == (State.BLOCKED, BlockedOn.SECRET)
    with installation.database.transaction() as session:
        work = _work_of(session, job_id)
        blocked = session.query(JobEvent).filter(JobEvent.kind == "job_blocked")
        assert ["LUTHIER_SECRET_KEY" in event.message for event in blocked][:1] == [True]
        work.not_before = None
    for key, count in ((installation.installation_key, 0), (lost.installation_key, 1)):
        with installation.database.transaction() as session:
            found = project_secrets.unblock_openable(
                session, installation_key=key, limit=9, now=clock(session)
            )
        assert (found >= 1) is bool(count)
    assert _state(installation, job_id) == (State.QUEUED, None)
    assert hub.asked == []
