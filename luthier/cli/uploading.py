"""Files of this machine on their way to a server: sent once, and found there again by their content.

Trying a job again and again, or only estimating it, then leaves one copy on the server and not one each time.
"""

from pathlib import Path

from luthier.artifacts import sha256_of
from luthier.cli.progress import TransferDisplay
from luthier.cli.terminal import say
from luthier.client import Client, File

_PURPOSE = "fine-tune"


def uploaded(client: Client, path: Path, on_bad_row: str | None = None) -> str:
    """The id of a file with that content whose rows are read as they are.

    Args:
        on_bad_row: of the job; with `drop`, a file with bad rows will do.
    Raises:
        ApiError: the server refuses the file.
    """
    usable = ("processed", "uploaded", *(["error"] if on_bad_row == "drop" else []))
    known = find_uploaded(client, path, None)
    if known is not None and known.status in usable:
        say(f"{path.name} is on the server already, as {known.id}")
        return known.id
    with TransferDisplay(path.name, path.stat().st_size) as display:
        file = client.files.upload(path, purpose=_PURPOSE, on_bad_row=on_bad_row, on_bytes=display)
    say(f"Uploaded {path.name} as {file.id}")
    return file.id


def find_uploaded(client: Client, path: Path, name: str | None) -> File | None:
    """The newest file of the server with that content; `name` is the one that it is registered under."""
    files = client.files.list(purpose=_PURPOSE, name=name, sha256=sha256_of(path))
    return next((file for file in files if file.dataset_name == name), None)
