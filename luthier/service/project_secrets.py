"""Secrets of a project, such as tokens of the hub: set, replaced and forgotten, and read by workers alone.

They are sealed under the installation's key, each for its own row. Nothing here gives a text back but
`hub_token`, which a worker calls when it is about to fetch a model.
"""

from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from luthier.errors import not_found
from luthier.repository import Page, list_owned
from luthier.sealing import SealError, seal, unseal
from luthier.service import blocking
from luthier.service.quotas import lock_project
from luthier.service.watching import IS_WAITING
from luthier.status import BlockedOn, State
from luthier.tables import Job, Secret

# The secret that models are fetched with where a job names none.
DEFAULT_HUB_TOKEN = "hf_token"  # noqa: S105, the name of a secret
_MOST_JOBS = 1000


class SecretMissingError(Exception):
    """A secret that a job needs is not there, or cannot be opened; the message says what to do."""


def put(
    session: Session,
    project_id: str,
    *,
    name: str,
    value: str,
    secret_id: str,
    api_key_id: str | None,
    installation_key: bytes,
    now: datetime,
) -> Secret:
    """Set a secret, or replace the one of that name; the project's jobs that waited for one go on."""
    # Of two that set a new name at once the second one finds what the first one made.
    lock_project(session, project_id)
    secret = _find(session, project_id, name)
    if secret is None:
        secret = Secret(id=secret_id, project_id=project_id, name=name, created_at=now)
        session.add(secret)
    secret.sealed = seal(value, installation_key, purpose=_purpose(secret))
    secret.api_key_id, secret.updated_at = api_key_id, now
    session.flush()
    blocking.unblock_secret(session, project_id, now=now, limit=_MOST_JOBS)
    return secret


def get_secret(session: Session, project_id: str, name: str) -> Secret:
    """A secret by its name.

    Raises:
        LuthierError: `secret_not_found`.
    """
    return require(session, project_id, name, param="name")


def require(session: Session, project_id: str, name: str, *, param: str) -> Secret:
    """The same, for a request that names it in another field."""
    secret = _find(session, project_id, name)
    if secret is None:
        raise not_found("secret", name, "secret_not_found", param)
    return secret


def list_secrets(session: Session, project_id: str, *, after: str | None, limit: int) -> Page[Secret]:
    """Secrets of a project, newest first."""
    return list_owned(session, Secret, Secret.project_id == project_id, after=after, limit=limit)


def hub_token(session: Session, job: Job, *, installation_key: bytes) -> str | None:
    """The token that a job's model is fetched with; None where neither it nor its project names one.

    Raises:
        SecretMissingError: it is named and not there, or was sealed under another key.
    """
    named = (job.request.get("hub_token") or {}).get("secret")
    secret = _find(session, job.project_id, named or DEFAULT_HUB_TOKEN)
    if secret is None:
        if named is None:
            return None
        raise SecretMissingError(f"The project has no secret {named!r}: set it with POST /v1/secrets")
    try:
        return unseal(secret.sealed, installation_key, purpose=_purpose(secret))
    except SealError as error:
        raise SecretMissingError(
            f"The secret {secret.name!r} cannot be opened with this installation's key: start it with the "
            "LUTHIER_SECRET_KEY (or the installation.key) that it was set under, or set the secret again"
        ) from error


def unblock_openable(session: Session, *, installation_key: bytes, now: datetime, limit: int) -> int:
    """Let projects' jobs go on that waited for a secret which is there and opens by now; returns how many.

    So they do once an installation has its right key again.
    """
    blocked = session.scalars(
        select(Job)
        .where(IS_WAITING, Job.state == State.BLOCKED, Job.blocked_on == BlockedOn.SECRET)
        .where(or_(Job.not_before.is_(None), Job.not_before <= now))
        .limit(limit)
    )
    return sum(_go_on(session, job, installation_key, now=now) for job in blocked.all())


def _go_on(session: Session, job: Job, installation_key: bytes, *, now: datetime) -> int:
    try:
        hub_token(session, job, installation_key=installation_key)
    except SecretMissingError:
        return 0
    return len(blocking.unblock_secret(session, job.project_id, now=now, limit=_MOST_JOBS))


def _find(session: Session, project_id: str, name: str) -> Secret | None:
    query = select(Secret).where(Secret.project_id == project_id, Secret.name == name)
    return session.scalars(query).one_or_none()


def _purpose(secret: Secret) -> str:
    return f"secret/{secret.id}"
