"""The last step of every file on its way in: checked, made durable, then its row, so that none lacks bytes.

What came in one body and what came in parts ends here alike. A file that is refused leaves nothing.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from api.file_checks import check_file
from api.multipart import UploadForm
from luthier.database import CommitUnknownError, clock
from luthier.ids import new_id
from luthier.installation import Installation
from luthier.service import files, quotas
from luthier.service.jobs import Caller
from luthier.storage import Incoming, discard
from luthier.tables import File

Also = Callable[[Session, str, datetime], None]
"""What else happens in the file's transaction, before its row is written; it is told the file's id."""


def refuse_over_quota(installation: Installation, caller: Caller, more_bytes: int) -> None:
    """Tell before anything is sent that it will not be kept."""
    limits = quotas.limits_of(installation.settings)
    with installation.database.reading() as session:
        quotas.require_storage(session, caller.project_id, limits, more_bytes=more_bytes)


def accept(
    installation: Installation,
    caller: Caller,
    form: UploadForm,
    incoming: Incoming,
    also: Also = lambda _session, _file_id, _now: None,
) -> File:
    """Take what was received, as `form` says, or raise for what is wrong with it."""
    incoming.flush()
    report, message = check_file(
        incoming.path,
        form.filename,
        installation.settings.whole_check_bytes,
        keeps_bad_rows=form.on_bad_row == "drop",
        keeps_all=form.on_bad_row == "keep",
    )
    file_id, work_id = new_id("file"), new_id("work")
    storage_key = f"files/{file_id}"
    installation.storage.keep(incoming, storage_key)

    def record(session: Session) -> File:
        now = clock(session)
        also(session, file_id, now)
        expires = form.expires_after_seconds
        file = files.record_upload(
            session,
            caller,
            file_id=file_id,
            work_id=work_id,
            filename=form.filename,
            purpose=form.purpose,
            size_bytes=incoming.size_bytes,
            sha256=incoming.sha256,
            storage_key=storage_key,
            report=report,
            message=message,
            now=now,
            expires_at=None if expires is None else now + timedelta(seconds=expires),
        )
        quotas.require_storage(session, caller.project_id, quotas.limits_of(installation.settings))
        return file

    try:
        return installation.database.run(record, recall=lambda session: session.get(File, file_id))
    except CommitUnknownError:
        # The row may stand: bytes without a row are swept up later, a row without bytes is not mended.
        raise
    except BaseException:
        discard(installation.storage, [storage_key])
        raise
