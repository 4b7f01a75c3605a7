"""What a job is: the request that a user writes, and the frozen spec that a child process reads.

`JobRequest` is the body of `POST /v1/fine_tuning/jobs` and of a job file; it is strict, so that a mistyped
name or a number in quotes is refused and not guessed at. `TrainSpec`, `PrepareSpec` and `ValidateSpec` are
what stands in `spec.json` of a run folder: every path and number resolved, nothing left to decide.
`planning.py` turns the one's "auto" into the other's numbers. This module knows no framework.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator

SPEC_VERSION = 1
MAX_SEED = 2**31 - 1

LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Request(BaseModel):
    """What users write: exact types, finite numbers, no unknown names."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Frozen(BaseModel):
    """What the service writes and reads back."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _auto_or_value(value: object) -> str:
    return "<auto>" if value == "auto" else "<value>"


# The tags stand in angle brackets so that whoever prints an error can tell them from the names of fields.
_AUTO = Annotated[Literal["auto"], Tag("<auto>")]
AutoEpochs = Annotated[
    _AUTO | Annotated[int, Field(ge=1, le=50), Tag("<value>")], Discriminator(_auto_or_value)
]
AutoBatch = Annotated[
    _AUTO | Annotated[int, Field(ge=1, le=256), Tag("<value>")], Discriminator(_auto_or_value)
]
AutoMultiplier = Annotated[
    _AUTO | Annotated[float, Field(gt=0, le=1000), Tag("<value>")], Discriminator(_auto_or_value)
]
AutoSteps = Annotated[
    _AUTO | Annotated[int, Field(ge=1, le=10_000_000), Tag("<value>")], Discriminator(_auto_or_value)
]
AutoSwitch = Annotated[_AUTO | Annotated[bool, Tag("<value>")], Discriminator(_auto_or_value)]


def _modules_or_all(value: object) -> str:
    return "<list>" if isinstance(value, list | tuple) else "<name>"


ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+$", max_length=64)]
TargetModules = Annotated[
    Annotated[Literal["all-linear"], Tag("<name>")]
    | Annotated[list[ModuleName], Field(min_length=1, max_length=64), Tag("<list>")],
    Discriminator(_modules_or_all),
]


class HyperparametersRequest(Request):
    """OpenAI's three; "auto" leaves the choice to `planning.resolve`."""

    n_epochs: AutoEpochs = "auto"
    batch_size: AutoBatch = "auto"
    learning_rate_multiplier: AutoMultiplier = "auto"


class SupervisedRequest(Request):
    """OpenAI's `method.supervised`."""

    hyperparameters: HyperparametersRequest = HyperparametersRequest()


class MethodRequest(Request):
    """OpenAI's `method`; supervised fine-tuning is the one that Luthier does."""

    type: Literal["supervised"] = "supervised"
    supervised: SupervisedRequest | None = None


class QloraRequest(Request):
    """The settings that OpenAI's API lacks; what is left out takes the default that the job then shows."""

    method: Literal["qlora", "lora"] = "qlora"
    r: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[float, Field(gt=0, le=65536)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: TargetModules = "all-linear"
    use_rslora: bool = False
    quantization: Literal["nf4", "fp4", "int8", "none"] | None = None
    double_quant: bool = True
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    max_seq_length: Annotated[int, Field(ge=8, le=1_048_576)] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    lr_scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    gradient_accumulation: AutoBatch = "auto"
    gradient_checkpointing: AutoSwitch = "auto"
    max_grad_norm: Annotated[float, Field(ge=0, le=1000)] = 1.0
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    eval_steps: AutoSteps = "auto"
    save_steps: AutoSteps = "auto"
    save_total_limit: Annotated[int, Field(ge=1, le=1000)] = 3
    logging_steps: AutoSteps = "auto"
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> "QloraRequest":
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError("warmup_ratio and warmup_steps exclude each other: give one of them")
        if self.method == "lora" and self.quantization not in (None, "none"):
            raise ValueError("method 'lora' trains on an unquantised base: leave quantization out")
        if self.method == "qlora" and self.quantization == "none":
            raise ValueError("method 'qlora' needs a quantised base: use method 'lora' for none")
        return self


class DatasetRequest(Request):
    """How the rows become training examples."""

    train_on: Literal["assistant", "last", "all"] = "assistant"
    overlength: Literal["truncate", "drop", "raise"] = "truncate"
    validation_split: Annotated[float, Field(ge=0, lt=1)] = 0.0


FileId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Suffix = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
]


class JobRequest(Request):
    """The body of `POST /v1/fine_tuning/jobs`: OpenAI's fields, and `qlora` and `dataset` beside them."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    training_file: FileId
    validation_file: FileId | None = None
    method: MethodRequest | None = None
    hyperparameters: HyperparametersRequest | None = None
    suffix: Suffix | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    integrations: Annotated[list[Any], Field(max_length=0)] | None = None
    qlora: QloraRequest = QloraRequest()
    dataset: DatasetRequest = DatasetRequest()

    @model_validator(mode="after")
    def _consistent(self) -> "JobRequest":
        if self.seed is not None and self.qlora.seed is not None and self.seed != self.qlora.seed:
            raise ValueError("seed and qlora.seed differ: give one of them")
        if self.qlora.learning_rate is not None and self.asked.learning_rate_multiplier != "auto":
            raise ValueError(
                "qlora.learning_rate and learning_rate_multiplier exclude each other: give one of them"
            )
        if self.validation_file is not None and self.dataset.validation_split > 0:
            raise ValueError(
                "validation_file and dataset.validation_split exclude each other: give one of them"
            )
        return self

    @property
    def asked(self) -> HyperparametersRequest:
        """OpenAI's three, from `method` or from the deprecated top level; `method` wins."""
        if self.method is not None and self.method.supervised is not None:
            return self.method.supervised.hyperparameters
        return self.hyperparameters or HyperparametersRequest()


class Hyperparameters(Frozen):
    """Every number that steers training, resolved.

    `batch_size` counts examples in a micro-batch; `gradient_accumulation` micro-batches make a step.
    `max_steps` is the number of optimizer steps that will be taken, whatever `n_epochs` says.
    """

    method: Literal["qlora", "lora"]
    n_epochs: int
    batch_size: int
    gradient_accumulation: int
    learning_rate_multiplier: float
    learning_rate: float
    lr_scheduler: Literal["linear", "cosine", "constant"]
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    max_steps: int
    eval_steps: int
    save_steps: int
    save_total_limit: int
    logging_steps: int
    r: int
    alpha: float
    dropout: float
    target_modules: Literal["all-linear"] | list[str]
    use_rslora: bool
    quantization: Literal["nf4", "fp4", "int8", "none"]
    double_quant: bool
    precision: Literal["auto", "bf16", "fp32"]
    max_seq_length: int
    gradient_checkpointing: bool | Literal["auto"]
    validation_split: float
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


class PreparedSplit(Frozen):
    """One prepared file: Parquet, a row an example.

    Columns: `input_ids`, a list of int32, and `loss_mask`, a list of uint8 of the same length, where 1 marks
    a token that the model learns to predict.
    """

    path: str
    sha256: str
    row_count: int
    token_count: int
    trained_token_count: int


class PreparedData(Frozen):
    """What preparation left for training; `validation` is None where no validation file was given."""

    train: PreparedSplit
    validation: PreparedSplit | None = None


class TrainSpec(Frozen):
    """`spec.json` of a training run.

    Attributes:
        run: attempt number, from 1.
        epoch: the lease's fencing number; names the run folder.
        resume_from: absolute path of a verified checkpoint folder, or None to start at step 0.
        save_seconds: a checkpoint is also written when this many seconds have passed since the last one.
    """

    kind: Literal["train"] = "train"
    spec_version: int = SPEC_VERSION
    job_id: str
    run: int
    epoch: int
    model: BaseModelRef
    data: PreparedData
    hyperparameters: Hyperparameters
    resume_from: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_seconds: float = 600.0


class SourceFile(Frozen):
    """An uploaded file as a child process finds it: where it lies and what the user calls it."""

    path: str
    filename: str
    param: Literal["training_file", "validation_file", "file"]


class PrepareSpec(Frozen):
    """`spec.json` of preparation: render, tokenise and mask one or two files for one model.

    The child leaves `artifacts/train.parquet` (and `validation.parquet`) and reports `PreparedData`, with
    paths relative to the run folder, as the result of its `run_ended`.
    """

    kind: Literal["prepare"] = "prepare"
    spec_version: int = SPEC_VERSION
    job_id: str
    run: int
    epoch: int
    model: BaseModelRef
    train: SourceFile
    validation: SourceFile | None = None
    dataset: DatasetRequest
    max_seq_length: int


class ValidateSpec(Frozen):
    """`spec.json` of validation: read one uploaded file whole and report on it."""

    kind: Literal["validate"] = "validate"
    spec_version: int = SPEC_VERSION
    job_id: str
    run: int
    epoch: int
    file: SourceFile


RunSpec = Annotated[TrainSpec | PrepareSpec | ValidateSpec, Field(discriminator="kind")]


def field_path(loc: tuple[int | str, ...]) -> str:
    """The dotted name of a field from pydantic's `loc`, without the tags of unions."""
    return ".".join(str(part) for part in loc if not (isinstance(part, str) and part.startswith("<")))
