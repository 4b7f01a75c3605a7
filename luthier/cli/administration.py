"""What the commands of the server's own machine share: the database at this release's schema, and a project.

What they change is put down in the audit log to the person who runs them.
"""

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from luthier import schema
from luthier.audit import Actor, acting_as
from luthier.cli.database import answering
from luthier.cli.terminal import fail
from luthier.installation import Installation, open_installation
from luthier.service import access
from luthier.settings import Settings
from luthier.tables import Project


@contextmanager
def opened() -> Iterator[Installation]:
    """The installation of the settings, with a schema that this release knows."""
    installation = open_installation(Settings())
    actor = Actor(access.DEFAULT_ORGANIZATION, name=_user(), address="command line")
    with answering(installation.database) as database, acting_as(actor):
        if schema.current_revision(database) != schema.wanted_revision():
            fail("the database is not at this release's schema: run `luthier db upgrade`")
        yield installation


def project_of(session: Session, named: str | None, *, now: datetime) -> Project:
    """The project of an option; ends the command where there is none, or two of that name."""
    if named is None:
        return access.ensure_project(session, now=now)
    query = select(Project).where(or_(Project.id == named, Project.name == named))
    found = session.scalars(query.where(Project.archived_at.is_(None)).limit(2)).all()
    if len(found) != 1:
        what = "there are several projects of that name" if found else f"there is no open project {named!r}"
        fail(f"{what}: give the id of one, see `luthier projects list`")
    return found[0]


def seconds_of(time: datetime | None) -> int | None:
    """A time as the API writes it."""
    return None if time is None else int(time.timestamp())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user has no name.
        return "unknown"
