"""Workers of the server: who works, and on what device."""

from luthier.client.calls import Query, Resource, Runner, listing
from luthier.client.objects import Page, Worker


class Workers(Resource[Runner]):
    """`/v1/fine_tuning/workers`."""

    @listing
    def list(self) -> Query[Worker]:
        """The agents that were heard of within a day."""
        return Query(Page[Worker], "/fine_tuning/workers")
