"""What can be tuned here, and how far."""

from starlette.testclient import TestClient


def test_a_base_model_shows_its_limits(client: TestClient) -> None:
    model = client.get("/v1/fine_tuning/models/tiny").json()
    assert model["limits"]["r"] == model["smallest_dimension"]
    assert model["limits"]["max_seq_length"] == model["context_length"]
    assert "q_proj" in model["target_modules"]
    assert (model["has_chat_template"], model["problem"]) == (True, None)
    assert model["parameter_count"] > 0
    assert {"chatml", "llama3"} <= set(model["templates"])
    assert client.get("/v1/fine_tuning/models").json()["data"] == [model]


def test_a_model_that_is_not_here_is_not_found(client: TestClient) -> None:
    answer = client.get("/v1/fine_tuning/models/org/nobody")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
