"""Models of the server: bases that can be tuned, and what jobs have made of them."""

from luthier.client.connection import Connection
from luthier.client.objects import Model, Page


class Models:
    """`/v1/models`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self) -> list[Model]:
        """All bases and the newest 1,000 tuned ones; OpenAI's list of models has no pages."""
        return Page[Model].model_validate_json(self._connection.request("GET", "/models").content).data

    def get(self, model_id: str) -> Model:
        return Model.model_validate_json(self._connection.request("GET", f"/models/{model_id}").content)
