"""One installation as a process meets it: settings, database, storage and the key behind all keys.

`open_installation` is what every server process starts with; `prepare` is what the first start does once:
schema, default project, first key.
"""

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from luthier import schema
from luthier.database import Database, clock
from luthier.errors import invalid
from luthier.ids import new_id
from luthier.keys import Key, new_key, parse_key
from luthier.service import access
from luthier.settings import Settings
from luthier.storage import Storage, open_storage

_KEY_FILE = "installation.key"
_FOLDER_FILE = "folder.id"


@dataclass(frozen=True)
class Installation:
    """What a process works with. `installation_key` keys the hashes of API keys."""

    settings: Settings
    database: Database
    storage: Storage
    installation_key: bytes = field(repr=False)

    @property
    def folder_id(self) -> str:
        """Names the data folder: two of them may work for one database, on one host or on two of one name."""
        path = self.settings.data / _FOLDER_FILE
        if not path.exists():
            _write_once(path, secrets.token_hex(4))
        return path.read_text(encoding="ascii").strip()


@dataclass(frozen=True)
class Prepared:
    """What the preparation of an installation did: the schema moved, and the first key, shown only now."""

    upgraded: bool
    first_key: str | None


def open_installation(settings: Settings) -> Installation:
    """Open what the settings name; makes the data folder and the installation's key on the first start."""
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Installation(
        settings,
        Database(settings.database, reserve_bytes=settings.reserve_bytes),
        open_storage(settings),
        _installation_key(settings),
    )


def prepare(installation: Installation) -> Prepared:
    """Bring schema, default project and first key into being; a second call does nothing, at once neither.

    Raises:
        LuthierError: the database belongs to a newer release, or LUTHIER_BOOTSTRAP_KEY is malformed.
    """
    upgraded = schema.upgrade(installation.database)
    with installation.database.transaction() as session:
        schema.lock(session.connection())
        now = clock(session)
        project = access.ensure_project(session, now=now)
        if access.has_keys(session):
            return Prepared(upgraded, None)
        key = _first_key(installation.settings)
        access.record_key(
            session,
            project,
            key,
            key_id=new_id("key"),
            name="first",
            installation_key=installation.installation_key,
            now=now,
        )
    return Prepared(upgraded, key.text)


def key_path(settings: Settings) -> Path:
    """Where the installation's key lies, unless LUTHIER_SECRET_KEY is it."""
    return settings.data / _KEY_FILE


def _first_key(settings: Settings) -> Key:
    if settings.bootstrap_key is None:
        return new_key()
    key = parse_key(settings.bootstrap_key.get_secret_value())
    if key is None:
        raise invalid("LUTHIER_BOOTSTRAP_KEY is not a key: make one with `luthier keys generate`")
    return key


def _installation_key(settings: Settings) -> bytes:
    """From LUTHIER_SECRET_KEY, else from a file that only its owner reads, drawn at the first start."""
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value().encode()
    path = key_path(settings)
    if not path.exists():
        _write_once(path, secrets.token_hex(32))
    return path.read_text(encoding="ascii").strip().encode()


def _write_once(path: Path, text: str) -> None:
    """Make a file whole or not at all; of two processes that try, one wins and both read the same."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.touch(mode=0o600)
    temporary.write_text(text + "\n", encoding="ascii")
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    finally:
        temporary.unlink()
