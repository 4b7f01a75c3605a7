"""`python -P -m api`: one process of the HTTP server; any number may share an installation."""

import sys

import structlog
import uvicorn

from api.app import create_app
from api.logs import configure_logs
from luthier.errors import LuthierError
from luthier.installation import open_installation, prepare
from luthier.settings import Settings

_GRACE_SECONDS = 10
_BAD_SETTINGS = 64

log = structlog.get_logger()


def main() -> int:
    """Serve until SIGTERM or SIGINT; requests that are being answered then get 10 s to end.

    Returns the exit code: 0, or 64 for settings that contradict each other or do not fit the database.
    """
    settings = Settings()
    configure_logs(settings)
    if problems := settings.problems():
        log.error("bad_settings", problems=problems)
        return _BAD_SETTINGS
    installation = open_installation(settings)
    try:
        prepared = prepare(installation)
    except LuthierError as error:
        log.error("not_prepared", reason=error.message)
        return _BAD_SETTINGS
    if prepared.first_key is not None and settings.bootstrap_key is None:
        sys.stdout.write(f"The API key, shown this once: {prepared.first_key}\n")
        sys.stdout.flush()
    config = uvicorn.Config(
        create_app(installation),
        host=settings.host,
        port=settings.port,
        server_header=False,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    log.info("api_starts", host=settings.host, port=settings.port)
    uvicorn.Server(config).run()
    installation.database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
