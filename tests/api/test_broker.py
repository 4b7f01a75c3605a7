"""The API and the broker: no request asks it, so that none waits for it."""

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from api.app import create_app
from luthier.installation import Installation
from luthier.settings import Settings
from tests.brokers import BlackHole


@pytest.fixture
def settings(settings: Settings, black_hole: BlackHole) -> Settings:
    """Settings with a broker that accepts and never answers."""
    return settings.model_copy(update={"redis_url": SecretStr(black_hole.url)})


def test_nothing_that_a_user_does_with_a_job_asks_the_broker(
    installation: Installation, key: str, file_id: str, black_hole: BlackHole
) -> None:
    assert installation.settings.redis_url is not None
    with TestClient(create_app(installation), headers={"Authorization": f"Bearer {key}"}) as client:
        body = {"model": "tiny", "training_file": file_id}
        job = client.post("/v1/fine_tuning/jobs", json=body).json()
        answers = [
            client.get(f"/v1/fine_tuning/jobs/{job['id']}"),
            client.get("/v1/fine_tuning/jobs"),
            client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel"),
            client.get("/readyz"),
            client.get("/metrics"),
        ]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert answers[2].json()["status"] == "cancelled"
    assert black_hole.visits == 0
