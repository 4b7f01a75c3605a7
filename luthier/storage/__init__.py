"""Where files lie: uploads, prepared data, checkpoints and artifacts, under keys such as `files/file-4Xq`.

Keys are made by Luthier, never by users. `Storage` is what a process works with, `open_storage` gives the
one that the settings name: a folder that all hosts share (`FileStorage`), or a bucket (`S3Storage`). On both,
what stands under a key is whole, and a folder is there once its manifest is.
"""

from luthier.storage.files import FileStorage
from luthier.storage.interface import Incoming, Storage, StorageUnavailableError, StoredFile, discard
from luthier.storage.opening import open_storage
from luthier.storage.s3 import S3Storage

__all__ = [
    "FileStorage",
    "Incoming",
    "S3Storage",
    "Storage",
    "StorageUnavailableError",
    "StoredFile",
    "discard",
    "open_storage",
]
