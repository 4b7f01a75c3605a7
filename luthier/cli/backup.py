"""`luthier backup` and `luthier restore`: all of an installation in one folder, and back from it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from luthier import schema
from luthier.backup import Backup, back_up
from luthier.backup import restore as bring_back
from luthier.cli.database import answering
from luthier.cli.terminal import say, size_of
from luthier.cli.up import locked
from luthier.database import Database
from luthier.installation import open_installation
from luthier.service import backups
from luthier.settings import Settings
from luthier.storage import open_storage

app = typer.Typer()


@app.command()
def backup(
    target: Annotated[
        Path, typer.Argument(help="The folder to make; in one that is there, a dated one is made.")
    ],
    checkpoints: Annotated[
        bool, typer.Option(help="Take the checkpoints of unfinished training along.")
    ] = True,
) -> None:
    """Back up database, files and key, also while the service works.

    Base models are not part of it. On the disk of the storage folder files are linked and take no room. The
    folder appears when all of it is written, checked and flushed.
    """
    settings = Settings()
    now = datetime.now(UTC)
    folder = target.absolute()
    if folder.is_dir():
        folder /= f"luthier-{now:%Y%m%dT%H%M%SZ}"
    installation = open_installation(settings)
    with answering(installation.database):
        made = back_up(installation, folder, now=now, with_checkpoints=checkpoints)
        if not made.damaged and made.facts.revision == schema.wanted_revision():
            with installation.database.transaction() as session:
                backups.record(session, made_at=now, folder=str(folder))
    _tell(made)
    if settings.secret_key is not None:
        say("LUTHIER_SECRET_KEY is not part of the backup: keep it elsewhere, a restore needs it")
    if made.damaged:
        raise typer.Exit(1)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="A folder that `luthier backup` has made.", exists=True)],
    force: Annotated[
        bool, typer.Option("--force", help="Replace an installation that is there; its rows are lost.")
    ] = False,
) -> None:
    """Bring a backup back to the data folder and the database that the settings name.

    SQLite and Postgres alike, whichever it came from. Nothing may run on either. Jobs that ran go back to
    their queue.
    """
    settings = Settings()
    database = Database(settings.database)
    with locked(settings.data), answering(database):
        stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        storage = open_storage(settings)
        done = bring_back(settings, database, storage, source.absolute(), force=force, stamp=stamp)
    say(f"Restored the backup of {done.facts.made_at} to {settings.data}")
    say(f"{done.facts.row_counts.get('jobs', 0)} jobs, {len(done.requeued)} of them queued again")
    if done.missing:
        say(f"{len(done.missing)} stored files were not in the backup, and their rows say so or are gone")
    if done.orphans is not None:
        say(f"What storage held beyond the backup now lies there under {done.orphans}: look, then delete it")
    print(done.facts.made_at)


def _tell(made: Backup) -> None:
    counts = made.facts.row_counts
    say(
        f"Backed up {counts.get('jobs', 0)} jobs and {counts.get('files', 0)} files, "
        f"{size_of(made.size_bytes)}, schema {made.facts.revision}"
    )
    if made.facts.missing:
        say(f"{len(made.facts.missing)} stored files were left out, or deleted meanwhile")
    for key in made.damaged:
        say(f"warning: {key} has changed since it came: its SHA-256 is another")
    print(made.folder)
