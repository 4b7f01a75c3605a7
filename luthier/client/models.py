"""Models of the server: bases that can be tuned, and what jobs have made of them."""

from luthier.client.calls import Query, Resource, Runner, call, listing
from luthier.client.objects import Model, Page
from luthier.client.steps import Request, Steps, segment

_PATH = "/models"


class Models(Resource[Runner]):
    """`/v1/models`."""

    @listing
    def list(self) -> Query[Model]:
        """All bases and the newest 1,000 tuned ones; OpenAI's list of models has no pages."""
        return Query(Page[Model], _PATH)

    @call
    def get(self, model_id: str) -> Steps[Model]:
        """One model."""
        return self._ask(Model, Request("GET", f"{_PATH}/{segment(model_id)}"))

    @call
    def delete(self, model_id: str) -> Steps[None]:
        """Remove a model that a job has made; bases are not the server's to delete."""
        yield from self._send(Request("DELETE", f"{_PATH}/{segment(model_id)}"))
