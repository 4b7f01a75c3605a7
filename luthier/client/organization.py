"""What owns things, and who may enter: projects, API keys, the audit log; for keys with the scope `admin`.

What `openai` calls `client.admin.organization`, with what that has not: keys that are made with scopes,
changed and rotated.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.client.calls import Query, Resource, Runner, call, listing
from luthier.client.objects import ApiKey, AuditLog, Page, Project
from luthier.client.steps import Request, Steps, given, segment

_PATH = "/organization"


class Projects(Resource[Runner]):
    """`/v1/organization/projects`."""

    @call
    def create(self, name: str, *, quotas: Mapping[str, int | None] | None = None) -> Steps[Project]:
        """Make a project.

        Args:
            quotas: `queued_jobs`, `running_jobs`, `storage_bytes`; None is no limit, and those that are left
                out are the settings'.
        """
        body = given({"name": name, "quotas": quotas})
        return self._ask(Project, Request("POST", f"{_PATH}/projects", {"json": body}))

    @listing
    def list(
        self, *, after: str | None = None, limit: int = 20, include_archived: bool | None = None
    ) -> Query[Project]:
        """Projects, newest first."""
        asked = {"after": after, "limit": limit, "include_archived": include_archived}
        return Query(Page[Project], f"{_PATH}/projects", asked)

    @call
    def get(self, project_id: str) -> Steps[Project]:
        """One project."""
        return self._ask(Project, Request("GET", _project(project_id)))

    @call
    def update(self, /, project_id: str, **changes: Any) -> Steps[Project]:
        """Change `name` or `quotas`, which are replaced as a whole."""
        request = Request("POST", _project(project_id), {"json": changes}, is_repeatable=True)
        return self._ask(Project, request)

    @call
    def archive(self, project_id: str) -> Steps[Project]:
        """Close a project for good: its keys are refused, and its jobs that have not ended are cancelled."""
        path = f"{_project(project_id)}/archive"
        return self._ask(Project, Request("POST", path, is_repeatable=True))


class ApiKeys(Resource[Runner]):
    """`/v1/organization/.../api_keys`: of a project or, without one, of the organisation's admins."""

    @call
    def create(
        self,
        name: str,
        *,
        project_id: str | None = None,
        scopes: Sequence[str] | None = None,
        expires_in_seconds: int | None = None,
        requests_per_minute: int | None = None,
    ) -> Steps[ApiKey]:
        """Make a key; its `value` is shown in this answer alone."""
        body = {
            "name": name,
            "scopes": scopes and [*scopes],
            "expires_in_seconds": expires_in_seconds,
            "requests_per_minute": requests_per_minute,
        }
        return self._ask(ApiKey, Request("POST", _keys(project_id), {"json": given(body)}))

    @listing
    def list(
        self, *, project_id: str | None = None, after: str | None = None, limit: int = 20
    ) -> Query[ApiKey]:
        """Keys, newest first; revoked ones are gone."""
        return Query(Page[ApiKey], _keys(project_id), {"after": after, "limit": limit})

    @call
    def get(self, key_id: str, *, project_id: str | None = None) -> Steps[ApiKey]:
        """One key."""
        return self._ask(ApiKey, Request("GET", f"{_keys(project_id)}/{segment(key_id)}"))

    @call
    def update(self, /, key_id: str, *, project_id: str, **changes: Any) -> Steps[ApiKey]:
        """Change a project's key: `name`, `scopes`, `expires_in_seconds` (None: never) and
        `requests_per_minute`."""
        path = f"{_keys(project_id)}/{segment(key_id)}"
        return self._ask(ApiKey, Request("POST", path, {"json": changes}, is_repeatable=True))

    @call
    def rotate(self, key_id: str, *, project_id: str | None = None, grace_hours: float = 24) -> Steps[ApiKey]:
        """Make a key in the place of another, which stays good for a while; `value` is shown this once."""
        path = f"{_keys(project_id)}/{segment(key_id)}/rotate"
        return self._ask(ApiKey, Request("POST", path, {"json": {"grace_hours": grace_hours}}))

    @call
    def delete(self, key_id: str, *, project_id: str | None = None) -> Steps[None]:
        """Revoke a key; what it has made stays."""
        yield from self._send(Request("DELETE", f"{_keys(project_id)}/{segment(key_id)}"))


class AuditLogs(Resource[Runner]):
    """`/v1/organization/audit_logs`."""

    @listing
    def list(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        event_types: Sequence[str] | None = None,
        resource_ids: Sequence[str] | None = None,
    ) -> Query[AuditLog]:
        """Who changed what, newest first."""
        asked = {"event_types[]": event_types, "resource_ids[]": resource_ids}
        return Query(Page[AuditLog], f"{_PATH}/audit_logs", {"after": after, "limit": limit, **asked})


def _project(project_id: str) -> str:
    return f"{_PATH}/projects/{segment(project_id)}"


def _keys(project_id: str | None) -> str:
    return f"{_PATH}/admin_api_keys" if project_id is None else f"{_project(project_id)}/api_keys"
