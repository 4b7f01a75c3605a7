"""Clients beside OpenAI's package for Python: Weights & Biases, LiteLLM, and OpenAI's package for Node.

Each one runs as a program in an environment of its own, which is made where it is missing, from pip's index
and npm's registry. LiteLLM's proxy opens its fine-tuning routes to paying users alone; what it calls behind
them is the package that is called here.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from luthier.installation import Installation
from luthier.status import Queue
from tests.api.conftest import jsonl
from tests.contract.conftest import Running, make_agent
from tests.contract.environments import environment, node_program
from tests.waiting import later
from worker.work import child_command

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
_HERE = Path(__file__).parent
# Rows as W&B's logger shows them: three turns each.
_TURNS = ({"role": "system", "content": "S"}, {"role": "user", "content": "Q"})


def _run(command: list[str | Path], running: Running, folder: Path, **environment: str) -> dict[str, Any]:
    """The object in the last line of a program's output that has one, once it has ended well."""
    clean = {name: os.environ[name] for name in os.environ if not name.startswith(("PYTHON", "OPENAI_"))}
    done = subprocess.run(
        [*command, json.dumps(asdict(running))],
        env=clean | environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    found: dict[str, Any] = json.loads(
        [line for line in done.stdout.splitlines() if line.startswith("{")][-1]
    )
    return found


@contextmanager
def _working(installation: Installation) -> Iterator[None]:
    """Agents at work meanwhile."""
    agents = [make_agent(installation, queue) for queue in (Queue.CPU, Queue.TRAIN)]
    threads = [later(lambda agent=agent: agent.serve(0.05)) for agent in agents]  # type: ignore[misc]
    try:
        yield
    finally:
        for agent in agents:
            agent.stopping.set()
        for thread in threads:
            thread.join()


@pytest.fixture(scope="module")
def trained(installation: Installation, running: Running) -> Running:
    """The service with a job that the real trainer has done, over rows of three turns."""
    rows = [{"messages": [*_TURNS, {"role": "assistant", "content": f"A{n}"}]} for n in range(16)]
    with OpenAI(base_url=running.url, api_key=running.key, max_retries=0) as client:
        file = client.files.create(file=("rows.jsonl", jsonl(*rows)), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model="tiny",
            training_file=file.id,
            validation_file=file.id,
            extra_body={"qlora": {"max_steps": 4, "eval_steps": 2, "logging_steps": 1}},
        )
        for queue in (Queue.CPU, Queue.TRAIN):
            make_agent(installation, queue, child_command).drain()
        assert client.fine_tuning.jobs.retrieve(job.id).status == "succeeded"
    return replace(running, tuned=job.id)


def test_weights_and_biases_logs_a_finished_job(trained: Running, tmp_path: Path) -> None:
    done = _run(
        [environment("wandb"), "-P", _HERE / "wandb_sync.py"], trained, tmp_path,
        WANDB_MODE="offline", WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9", HOME=str(tmp_path),
    )  # fmt: skip
    assert "completed successfully" in done["said"]
    # The trainer evaluates before the first step, too.
    assert (done["logged"]["train_loss"], done["logged"]["valid_loss"]) == (4, 3)
    assert (done["logged"]["train_data"], done["logged"]["valid_data"]) == (1, 1)
    assert done["kept_bytes"] > 0


def test_litellm_submits_lists_and_cancels(running: Running, tmp_path: Path) -> None:
    done = _run(
        [environment("litellm"), "-P", _HERE / "litellm_calls.py"], running, tmp_path,
        LITELLM_LOCAL_MODEL_COST_MAP="True",
    )  # fmt: skip
    assert done["tuned"].startswith("ft:tiny:")


def test_a_program_for_node_follows_its_job_to_the_end(
    installation: Installation, running: Running, tmp_path: Path
) -> None:
    with _working(installation):
        done = _run(node_program(_HERE / "node", "calls.mjs"), running, tmp_path)
    assert done["job"].startswith("ftjob-")
