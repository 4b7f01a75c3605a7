"""`run.json`: all that is needed to do a run again, and to know what it was done with; no path is in it.

The trainer writes it beside the adapter, and `luthier train --from-manifest` reads it.
"""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from luthier.spec.base import Frozen
from luthier.spec.request import DatasetRequest
from luthier.spec.run import DataFile, Hyperparameters

MANIFEST_FORMAT = 1


class _Part(Frozen):
    """Readers pass over what a newer release has added."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class ManifestModel(_Part):
    """The base model by its name; `adapter_sha256` is of the weights that a run started from, or None."""

    id: str
    revision: str | None = None
    adapter_sha256: str | None = None


class ManifestSplit(_Part):
    """A prepared file that was trained or evaluated on."""

    sha256: str
    row_count: int
    token_count: int
    trained_token_count: int
    longest_row_tokens: int = 0
    weight: float = 1.0


class ManifestData(_Part):
    """What was trained on.

    Attributes:
        files: the user's files, as far as they are known to the one who started the run.
        rules: how their rows became examples; None where that is not known.
        train, validation: what they were prepared as.
    """

    files: tuple[DataFile, ...] = ()
    rules: DatasetRequest | None = None
    train: Annotated[tuple[ManifestSplit, ...], Field(min_length=1)]
    validation: ManifestSplit | None = None


class ManifestSoftware(_Part):
    """`luthier_commit` is None for a build that does not know its commit; `libraries` are name to version."""

    luthier_version: str
    luthier_commit: str | None = None
    python_version: str
    platform: str
    libraries: dict[str, str]


class ManifestHardware(_Part):
    """What the run was computed on; `device_memory_bytes` is the GPU's, or the machine's for the CPU."""

    device: str
    device_name: str
    device_memory_bytes: int
    cpu_count: int
    memory_bytes: int


class RunManifest(_Part):
    """The whole of it.

    Attributes:
        finished_at: Unix seconds.
        seconds: by phase, over all runs of the job, and `elapsed`.
        results: as the job's result.
    """

    format: int = MANIFEST_FORMAT
    job_id: str
    run: int
    finished_at: float
    base_model: ManifestModel
    data: ManifestData
    seed: int
    hyperparameters: Hyperparameters
    engine: str
    precision: str
    software: ManifestSoftware
    hardware: ManifestHardware
    seconds: dict[str, float]
    results: dict[str, Any]
