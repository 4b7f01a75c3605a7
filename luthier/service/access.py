"""Who may enter, and what a key may do there: the first organisation, project and key, and the check of one.

A key belongs to a project and has scopes: `read` and `write` within the project, `admin` over the whole
organisation. A key with `admin` may name another project of the organisation to act in; every other key that
names one which is not its own is refused.
"""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from luthier.errors import LuthierError, printable
from luthier.keys import Key, key_hash, parse_key
from luthier.service.jobs import Caller
from luthier.tables import ApiKey, Organization, Project

DEFAULT_ORGANIZATION = "org-local"
DEFAULT_PROJECT = "proj-default"
INVALID = "invalid_api_key"
READ, WRITE, ADMIN = "read", "write", "admin"
ALL_SCOPES = frozenset({READ, WRITE, ADMIN})
PROJECT_SCOPES = frozenset({READ, WRITE})
_LAST_USED_GRAIN = timedelta(minutes=1)


@dataclass(frozen=True)
class Grant:
    """What a key was let in for.

    Attributes:
        requests_per_minute: of the key's own; None where the setting decides, 0 for no limit.
        is_archived: whether the project takes nothing new any more.
    """

    caller: Caller
    scopes: frozenset[str]
    requests_per_minute: int | None = None
    is_archived: bool = False

    def require(self, scope: str, *, deletes: bool = False) -> None:
        """Let a request pass that needs a scope.

        Args:
            deletes: it takes something away; that is allowed in an archived project.
        Raises:
            LuthierError: `project_archived` or `insufficient_permissions`.
        """
        if self.is_archived and scope == WRITE and not deletes:
            raise archived(self.caller.project_id)
        if scope not in self.scopes:
            text = f"The API key lacks the scope {scope!r}: use a key that has it, or have one made"
            raise LuthierError(text, "insufficient_permissions")


def ensure_project(session: Session, *, now: datetime) -> Project:
    """The default project, made with its organisation where it is missing."""
    project = session.get(Project, DEFAULT_PROJECT)
    if project is None:
        session.add(Organization(id=DEFAULT_ORGANIZATION, name="local", created_at=now))
        session.flush()
        project = Project(
            id=DEFAULT_PROJECT, organization_id=DEFAULT_ORGANIZATION, name="default", created_at=now
        )
        session.add(project)
        session.flush()
    return project


def has_keys(session: Session) -> bool:
    """Whether any key was ever made."""
    return session.scalars(select(ApiKey.id).limit(1)).one_or_none() is not None


def has_valid_keys(session: Session, *, now: datetime) -> bool:
    """Whether anybody can enter."""
    is_valid = (ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now))
    return session.scalars(select(ApiKey.id).where(*is_valid).limit(1)).one_or_none() is not None


def record_key(
    session: Session,
    project: Project,
    key: Key,
    *,
    key_id: str,
    name: str,
    installation_key: bytes,
    now: datetime,
    scopes: Iterable[str] = ALL_SCOPES,
    expires_at: datetime | None = None,
    requests_per_minute: int | None = None,
) -> ApiKey:
    """Store a new key by its hash."""
    row = ApiKey(
        id=key_id,
        project_id=project.id,
        name=name,
        prefix=key.prefix,
        hash=key_hash(key, installation_key),
        scopes=stored_scopes(scopes),
        created_at=now,
        expires_at=expires_at,
        requests_per_minute=requests_per_minute,
    )
    session.add(row)
    session.flush()
    return row


def stored_scopes(scopes: Iterable[str]) -> str:
    """Scopes as the table holds them."""
    return ",".join(sorted(set(scopes)))


def authenticate(
    session: Session,
    presented: str | None,
    *,
    installation_key: bytes,
    now: datetime,
    organization: str | None = None,
    project: str | None = None,
) -> Grant:
    """Whom a bearer key belongs to, and what it may do.

    Args:
        organization, project: ids that the request names beside the key.
    Raises:
        LuthierError: `invalid_api_key`, whose message never repeats what was presented;
            `mismatched_organization` or `mismatched_project`; `project_archived`.
    """
    key = require_shape(presented)
    found = _find(session, key)
    if found is None or not _opens(found[0], key, installation_key, now):
        raise _invalid()
    row, home = found
    scopes = frozenset(row.scopes.split(","))
    if organization and organization != home.organization_id:
        text = (
            f"The API key is of another organisation than {printable(organization)!r}: leave "
            "OpenAI-Organization (OPENAI_ORG_ID) out"
        )
        raise LuthierError(text, "mismatched_organization")
    if ADMIN not in scopes and home.archived_at is not None:
        raise archived(home.id)
    entered = home if not project or project == home.id else _other_project(session, home, scopes, project)
    caller = Caller(home.organization_id, entered.id, row.id)
    return Grant(caller, scopes, row.requests_per_minute, entered.archived_at is not None)


def require_shape(presented: str | None) -> Key:
    """A key as it was presented, which may be anybody's; raises LuthierError `invalid_api_key`."""
    key = parse_key(presented) if presented else None
    if key is None:
        raise _invalid()
    return key


def archived(project_id: str) -> LuthierError:
    """The refusal of what is new in an archived project."""
    return LuthierError(f"Project {project_id} is archived: it takes nothing new", "project_archived")


def record_use(session: Session, api_key_id: str, *, now: datetime) -> None:
    """Note that a key was used, at most once a minute."""
    row = session.get_one(ApiKey, api_key_id)
    if row.last_used_at is None or now - row.last_used_at >= _LAST_USED_GRAIN:
        row.last_used_at = now


def _invalid() -> LuthierError:
    return LuthierError("Missing or invalid API key. Send it as 'Authorization: Bearer lk_...'.", INVALID)


def _find(session: Session, key: Key) -> tuple[ApiKey, Project] | None:
    query = select(ApiKey, Project).join(Project, Project.id == ApiKey.project_id)
    found = session.execute(query.where(ApiKey.prefix == key.prefix)).one_or_none()
    return None if found is None else (found[0], found[1])


def _opens(row: ApiKey, key: Key, installation_key: bytes, now: datetime) -> bool:
    is_over = row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now)
    return not is_over and hmac.compare_digest(row.hash, key_hash(key, installation_key))


def _other_project(session: Session, home: Project, scopes: frozenset[str], project_id: str) -> Project:
    """The project that a key names in the place of its own."""
    other = session.get(Project, project_id) if ADMIN in scopes else None
    if other is None or other.organization_id != home.organization_id:
        text = (
            f"The API key does not belong to project {printable(project_id)!r}: leave OpenAI-Project "
            "(OPENAI_PROJECT_ID) out"
        )
        raise LuthierError(text, "mismatched_project")
    return other
