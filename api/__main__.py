"""`python -P -m api`: one process of the HTTP server; any number may share an installation."""

import signal
import sys

import structlog

from api.app import create_app
from api.server import Server
from luthier.database import clock
from luthier.errors import LuthierError
from luthier.installation import Installation, open_installation, prepare
from luthier.logs import configure_logs
from luthier.service import access
from luthier.settings import Settings, is_loopback

_BAD_SETTINGS = 64

log = structlog.get_logger()


def main() -> int:
    """Serve until SIGTERM or SIGINT; requests that are being answered then get 50 s to end.

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
    if not is_loopback(settings.host) and not _has_valid_keys(installation):
        log.error("no_keys", reason="LUTHIER_HOST is not loopback and no key is valid: luthier keys create")
        return _BAD_SETTINGS
    # uvicorn ends in order and then raises the signal that ended it; by then there is nothing left to do.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    app = create_app(installation)
    Server(app, host=settings.host, port=settings.port).run()
    installation.database.close()
    log.info("api_ended")
    return 0


def _has_valid_keys(installation: Installation) -> bool:
    with installation.database.reading() as session:
        return access.has_valid_keys(session, now=clock(session))


if __name__ == "__main__":
    sys.exit(main())
