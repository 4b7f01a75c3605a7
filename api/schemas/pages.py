"""Lists: one page of rows, with the ids that lead to the next one."""

from collections.abc import Sequence
from datetime import datetime
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel


class Named(BaseModel):
    """An object with an id that a page can go on from."""

    id: str


Item = TypeVar("Item", bound=Named)


class ListPage(BaseModel, Generic[Item]):
    """One page, in the order that the route tells; `last_id` as `after` gives the next one."""

    object: Literal["list"] = "list"
    data: Sequence[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


def page_of(items: Sequence[Item], *, has_more: bool) -> ListPage[Item]:
    """A page of objects."""
    return ListPage(
        data=items,
        first_id=items[0].id if items else None,
        last_id=items[-1].id if items else None,
        has_more=has_more,
    )


def unix_seconds(at: datetime) -> int:
    """A time as OpenAI's objects tell it."""
    return int(at.timestamp())


def optional_seconds(at: datetime | None) -> int | None:
    return None if at is None else unix_seconds(at)
