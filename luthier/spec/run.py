"""What a child process is to do: `spec.json` of a run folder, resolved and frozen.

Every path and number stands in it; nothing is left to decide.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, TypedDict

from pydantic import Field

from luthier.spec.base import Frozen
from luthier.spec.entry import DatasetEntry
from luthier.spec.request import (
    Bias,
    Columns,
    DatasetRequest,
    EarlyStopping,
    EngineName,
    LoraInit,
    Method,
    Optimizer,
    Precision,
    Quantization,
    Samples,
    Scheduler,
)

SPEC_VERSION = 1

SharedSteps = Literal["warmup_steps", "eval_steps", "save_steps", "logging_steps"]
StepRule = float | Literal["auto", "epoch"]


class Hyperparameters(Frozen):
    """Every number that steers training, resolved.

    `batch_size` counts examples in a micro-batch; `gradient_accumulation` micro-batches make a step.
    `max_steps` is the number of optimizer steps that will be taken, whatever `n_epochs` says; with
    `are_steps_estimated` (with packing, or rows held out from files of different weight, only the trainer can
    count the rows of an epoch) the trainer makes it exact, by `epochs` or else by `n_epochs`.
    `step_shares` are the settings that follow from `max_steps` and so change with it: a share of it, rounded
    up, or what `auto` or `epoch` make of it.
    """

    method: Method
    n_epochs: int
    batch_size: int
    gradient_accumulation: int
    learning_rate_multiplier: float
    learning_rate: float
    lr_scheduler: Scheduler
    lr_restarts: int = 0
    min_lr_ratio: float = 0.0
    optimizer: Optimizer = "adamw"
    loraplus_lr_ratio: float | None = None
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    max_steps: int
    epochs: float | None = None
    are_steps_estimated: bool = False
    step_shares: dict[SharedSteps, StepRule] = Field(default_factory=dict)
    eval_steps: int
    save_steps: int
    save_total_limit: int
    logging_steps: int
    early_stopping: EarlyStopping | None = None
    samples: Samples = Samples(count=0)
    r: int
    alpha: float
    dropout: float
    target_modules: Literal["all-linear"] | list[str]
    bias: Bias = "none"
    use_rslora: bool
    use_dora: bool = False
    init_lora_weights: LoraInit = "default"
    trainable_layers: int | None = None
    quantization: Quantization
    double_quant: bool
    precision: Precision
    max_seq_length: int
    packing: bool = False
    neftune_alpha: float | None = None
    gradient_checkpointing: bool | Literal["auto"]
    auto_fit: bool = False
    engine: EngineName = "auto"
    validation_split: float
    validation_rows: int | None = None
    seed: int


class BaseModelRef(Frozen):
    """A base model on this machine.

    Attributes:
        id: the name that the user gave.
        path: absolute folder with config.json, tokenizer.json and, for training, safetensors.
        revision: commit on the hub, or None for a local folder.
    """

    id: str
    path: str
    revision: str | None = None


def weighted_row_count(row_count: int, weight: float) -> int:
    """Rows that an epoch sees of a file with `row_count` rows; at least one."""
    return max(1, round(row_count * weight))


END_MARK = 2
END_ID_KEY = "end_id"


class PreparedSplit(Frozen):
    """One prepared file: Parquet, a row an example.

    Columns: `input_ids`, a list of int32, and `loss_mask`, a list of uint8 of the same length, where 1 marks
    a token that the model learns to predict, and END_MARK one in whose place it learns to end: there the
    label is the id that the file's metadata has under END_ID_KEY.

    Attributes:
        weight: rows of this file in an epoch, over `row_count`.
    """

    path: str
    sha256: str
    row_count: int
    token_count: int
    trained_token_count: int
    longest_row_tokens: int = 0
    weight: float = 1.0

    @property
    def weighted_row_count(self) -> int:
        """Rows of this file that an epoch sees; at least one."""
        return weighted_row_count(self.row_count, self.weight)


class PreparedData(Frozen):
    """What preparation left for training, a file each; `validation` is None where none was given.

    Attributes:
        chat_template: Jinja that the rows were rendered by and the trained model has to carry; None where
            that is the model's own.
    """

    train: Annotated[tuple[PreparedSplit, ...], Field(min_length=1)]
    validation: PreparedSplit | None = None
    chat_template: str | None = None

    @property
    def train_row_count(self) -> int:
        """Rows of all training files, by weight, before any are held out."""
        return sum(split.weighted_row_count for split in self.train)

    @property
    def train_token_count(self) -> int:
        """Their tokens, as far as rows of a file are alike."""
        return sum(
            round(split.token_count * split.weighted_row_count / split.row_count) for split in self.train
        )


class DataFile(Frozen):
    """A file of the user's that a run's data was prepared from, as its manifest names it."""

    param: Literal["training_file", "validation_file", "dataset.files"]
    filename: str
    sha256: str
    weight: float = 1.0
    entry: DatasetEntry | None = None


class RunOf(Frozen):
    """The run that a spec is for.

    Attributes:
        run: attempt number, from 1.
        epoch: the lease's fencing number; names the run folder.
    """

    spec_version: int = SPEC_VERSION
    job_id: str
    run: int
    epoch: int


class TrainSpec(RunOf):
    """`spec.json` of a training run.

    Attributes:
        adapter_from: absolute folder of a PEFT adapter to start from; None for a fresh one.
        resume_from: absolute path of a verified checkpoint folder, or None to start at step 0.
        save_seconds: a checkpoint is also written when this many seconds have passed since the last one.
        files, rules: where the data came from and how it was prepared, for the manifest alone.
    """

    kind: Literal["train"] = "train"
    model: BaseModelRef
    data: PreparedData
    hyperparameters: Hyperparameters
    adapter_from: str | None = None
    resume_from: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_seconds: float = 600.0
    files: tuple[DataFile, ...] = ()
    rules: DatasetRequest | None = None


class SourceFile(Frozen):
    """An uploaded file as a child process finds it: where it lies, what the user calls it, how it is read.

    Attributes:
        entry: of dataset_info.json, where the file was registered with one; it excludes `columns`.
        sha256: of the file's content; `cache_key`, under which its prepared rows are kept for other jobs.
            Both are for the supervisor; None where nothing is shared.
        prepared: the outcome of an earlier preparation by the same rules; then nothing is done again.
    """

    path: str
    filename: str
    param: Literal["training_file", "validation_file", "dataset.files", "file"]
    weight: float = 1.0
    columns: Columns | None = None
    entry: DatasetEntry | None = None
    sha256: str | None = None
    cache_key: str | None = None
    prepared: PreparedSplit | None = None


class DataOrigin(TypedDict):
    """`files` and `rules` of a `TrainSpec`."""

    files: tuple[DataFile, ...]
    rules: DatasetRequest


def data_origin(rules: DatasetRequest, sources: Iterable[SourceFile]) -> DataOrigin:
    """Where a run's data came from, as its manifest tells it: by contents, without a path or an id.

    Args:
        sources: the user's files with their hashes; those for training first.
    """
    files = [source.model_dump(include={*DataFile.model_fields}) for source in sources]
    # Files are named by ids of a server, or by paths of a machine.
    return {
        "files": tuple(DataFile.model_validate(file) for file in files),
        "rules": rules.model_copy(update={"files": []}),
    }


class PrepareSpec(RunOf):
    """`spec.json` of preparation: render, tokenise and mask the files of a job for one model.

    The child leaves `artifacts/train-000.parquet` and so on (and `validation.parquet`) and reports
    `PreparedData`, with paths relative to the run folder for what it made itself, as the result of its
    `run_ended`.
    """

    kind: Literal["prepare"] = "prepare"
    model: BaseModelRef
    train: Annotated[tuple[SourceFile, ...], Field(min_length=1)]
    validation: SourceFile | None = None
    dataset: DatasetRequest
    max_seq_length: int


class ConvertSpec(RunOf):
    """`spec.json` of a conversion: a file of any form becomes Alpaca rows in `artifacts/rows.jsonl`."""

    kind: Literal["convert"] = "convert"
    file: SourceFile


class ModelView(Frozen):
    """For whom a file is looked at: a model, and the rules by which its rows become examples."""

    model: BaseModelRef
    dataset: DatasetRequest
    max_seq_length: int


class ValidateSpec(RunOf):
    """`spec.json` of validation: read one uploaded file whole and report on it, for a model where given.

    Attributes:
        against: a validation file, whose rows should not be in it.
    """

    kind: Literal["validate"] = "validate"
    file: SourceFile
    view: ModelView | None = None
    against: SourceFile | None = None


class PreviewSpec(RunOf):
    """`spec.json` of a preview: some rows as the model would see them.

    Attributes:
        offset: rows to pass over.
    """

    kind: Literal["preview"] = "preview"
    file: SourceFile
    view: ModelView
    offset: Annotated[int, Field(ge=0)] = 0
    count: Annotated[int, Field(ge=1, le=100)] = 5


class MeasureSpec(RunOf):
    """`spec.json` of a measurement: how many tokens the first `max_rows` rows of each file have."""

    kind: Literal["measure"] = "measure"
    files: Annotated[tuple[SourceFile, ...], Field(min_length=1)]
    view: ModelView
    max_rows: int = 1000


DatasetSpec = PrepareSpec | ConvertSpec | ValidateSpec | PreviewSpec | MeasureSpec
RunSpec = Annotated[TrainSpec | DatasetSpec, Field(discriminator="kind")]
