"""Backups: one folder with all that an installation is, made while it works, restored to either database.

`back_up` makes one, `restore` brings one back. The rows lie in a form of their own (`rows`), so that what was
SQLite can become Postgres; files are hard links where the disk allows; a manifest with SHA-256 seals it all.
"""

from luthier.backup.making import Backup, back_up, back_up_rows
from luthier.backup.restoring import Restored, restore

__all__ = ["Backup", "Restored", "back_up", "back_up_rows", "restore"]
