"""A base model that is not on this machine is pulled at the first use of it, or the job says why not."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from luthier.installation import Installation
from luthier.models import find_model
from luthier.settings import Settings
from luthier.status import Queue, State
from luthier.tables import Job
from tests.factories import create_job
from tests.hub import Hub, model_files, running_hub
from worker.agent import Agent

MODEL = "Qwen/Tiny"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A local server that speaks the hub's protocol and has one model."""
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """The usual settings with a model folder that is empty."""
    return settings.model_copy(update={"model_dir": tmp_path / "models"})


def _submit(installation: Installation) -> str:
    with installation.database.transaction() as session:
        return create_job(session, model=MODEL).id


def test_the_first_job_of_a_model_pulls_it(
    installation: Installation, make_agent: Callable[..., Agent], hub: Hub, job_of: Callable[[str], Job]
) -> None:
    hub.models[MODEL] = model_files()
    job_id = _submit(installation)
    make_agent(Queue.CPU, "done").drain()
    model = find_model(installation.settings.models, MODEL)
    assert model is not None
    assert (model.revision, job_of(job_id).prepared_at is not None) == (hub.commit(MODEL), True)


def test_a_model_that_the_hub_does_not_have_fails_the_job_with_advice(
    installation: Installation, make_agent: Callable[..., Agent], hub: Hub, job_of: Callable[[str], Job]
) -> None:
    job_id = _submit(installation)
    make_agent(Queue.CPU, "done").drain()
    job = job_of(job_id)
    assert (job.state, job.error_code) == (State.FAILED, "model_not_found")
    assert MODEL in (job.error_message or "")
