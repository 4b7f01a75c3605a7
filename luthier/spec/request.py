"""What a user asks for: the body of `POST /v1/fine_tuning/jobs` and of a job file.

It is strict, so that a mistyped name or a number in quotes is refused and not guessed at. `planning.py` turns
its "auto" into numbers.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from luthier.spec.base import Request

MAX_SEED = 2**31 - 1

# Where a body has OpenAI's three, as OpenAI's API has them now; what stands there always counts.
HYPERPARAMETERS_PATH = "method.supervised.hyperparameters"

LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _auto_or_value(value: object) -> str:
    return "<auto>" if value == "auto" else "<value>"


def _kind_of_steps(value: object) -> str:
    if isinstance(value, float):
        return "<share>"
    return f"<{value}>" if value in ("auto", "epoch") else "<value>"


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
    _AUTO
    | Annotated[Literal["epoch"], Tag("<epoch>")]
    | Annotated[float, Field(gt=0, lt=1), Tag("<share>")]
    | Annotated[int, Field(ge=1, le=10_000_000), Tag("<value>")],
    Discriminator(_kind_of_steps),
]
AutoSwitch = Annotated[_AUTO | Annotated[bool, Tag("<value>")], Discriminator(_auto_or_value)]


def _modules_or_all(value: object) -> str:
    return "<list>" if isinstance(value, list | tuple) else "<name>"


Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=32)]
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


Method = Literal["qlora", "lora", "full"]
Quantization = Literal["nf4", "fp4", "int8", "none"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "adafactor"]
Scheduler = Literal["linear", "cosine", "constant"]
Bias = Literal["none", "all", "lora_only"]
LoraInit = Literal["default", "pissa"]
EngineName = Literal["auto", "trl"]


class EarlyStopping(Request):
    """Stop when `patience` evaluations in a row have not lowered the best loss by `min_delta`."""

    patience: Annotated[int, Field(ge=1, le=1000)]
    min_delta: Annotated[float, Field(ge=0, le=100)] = 0.0
    metric: Literal["eval_loss"] = "eval_loss"


class Samples(Request):
    """Answers that the model gives at evaluations to the first prompts of the validation split.

    Attributes:
        count: prompts; 0 turns samples off.
    """

    count: Annotated[int, Field(ge=0, le=16)] = 2
    max_new_tokens: Annotated[int, Field(ge=1, le=1024)] = 48


class QloraRequest(Request):
    """The settings that OpenAI's API lacks; what is left out takes the default that the job then shows.

    Attributes:
        trainable_layers: for method `full`: only the last so many decoder layers are trained.
        lr_restarts: times that the cosine starts again from the top; 0 is one descent.
        min_lr_ratio: where the schedule ends, as a share of the learning rate.
        loraplus_lr_ratio: learning rate of B over that of A. Hayou et al. 2024, arXiv 2402.12354.
        epochs: in the place of n_epochs, and may end within an epoch, as 1.5 does.
        max_steps: goes before any number of epochs.
        eval_steps, save_steps, logging_steps: `epoch` is once an epoch; below 1 it is a share of all steps,
            rounded up.
        neftune_alpha: noise on the embeddings in training. Jain et al. 2023, arXiv 2310.05914.
        packing: several rows in one of `max_seq_length` tokens, each blind to the others.
        auto_fit: where memory runs out, go on once with half the micro-batch and twice the accumulation.
    """

    method: Method = "qlora"
    r: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[float, Field(gt=0, le=65536)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: TargetModules = "all-linear"
    bias: Bias = "none"
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: LoraInit = "default"
    trainable_layers: Annotated[int, Field(ge=1, le=1000)] | None = None
    quantization: Quantization | None = None
    double_quant: bool = True
    precision: Precision = "auto"
    max_seq_length: Annotated[int, Field(ge=8, le=1_048_576)] | None = None
    packing: bool = False
    optimizer: Optimizer = "adamw"
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    loraplus_lr_ratio: Annotated[float, Field(gt=0, le=1000)] | None = None
    lr_scheduler: Scheduler = "linear"
    lr_restarts: Annotated[int, Field(ge=0, le=1000)] = 0
    min_lr_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    gradient_accumulation: AutoBatch = "auto"
    gradient_checkpointing: AutoSwitch = "auto"
    max_grad_norm: Annotated[float, Field(ge=0, le=1000)] = 1.0
    epochs: Annotated[float, Field(gt=0, le=50)] | None = None
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    eval_steps: AutoSteps = "auto"
    save_steps: AutoSteps = "auto"
    save_total_limit: Annotated[int, Field(ge=1, le=1000)] = 3
    logging_steps: AutoSteps = "auto"
    early_stopping: EarlyStopping | None = None
    neftune_alpha: Annotated[float, Field(gt=0, le=1000)] | None = None
    samples: Samples = Samples()
    auto_fit: bool = False
    engine: EngineName = "auto"
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> "QloraRequest":
        for is_wrong, text in (*self._contradictions(), *self._out_of_place()):
            if is_wrong:
                raise ValueError(text)
        return self

    def _contradictions(self) -> Iterator[tuple[bool, str]]:
        quantized = self.quantization not in (None, "none")
        yield (
            self.warmup_ratio is not None and self.warmup_steps is not None,
            "warmup_ratio and warmup_steps exclude each other: give one of them",
        )
        yield (
            self.method == "lora" and quantized,
            "method 'lora' trains on an unquantised base: leave quantization out",
        )
        yield (
            self.method == "qlora" and self.quantization == "none",
            "method 'qlora' needs a quantised base: use method 'lora' for none",
        )
        yield (
            self.method == "full" and quantized,
            "method 'full' trains the weights themselves, which cannot be quantised: use method 'qlora', or "
            "leave quantization out",
        )

    def _out_of_place(self) -> Iterator[tuple[bool, str]]:
        yield (
            self.init_lora_weights == "pissa" and self.method != "lora",
            "init_lora_weights 'pissa' splits the weights of an unquantised base: use method 'lora'",
        )
        yield (
            self.trainable_layers is not None and self.method != "full",
            "trainable_layers is for method 'full': use target_modules to choose where adapters go",
        )
        yield (
            self.method == "full" and self.loraplus_lr_ratio is not None,
            "loraplus_lr_ratio is for adapters, and method 'full' has none: leave it out",
        )
        yield (
            self.lr_restarts > 0 and self.lr_scheduler != "cosine",
            "lr_restarts is for lr_scheduler 'cosine'",
        )
        yield (
            self.min_lr_ratio > 0 and self.lr_scheduler == "constant",
            "min_lr_ratio is for schedules that fall: use lr_scheduler 'cosine' or 'linear'",
        )


FileId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
# What a column of the user's is for: the keys of the formats that are understood.
FieldName = Literal[
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "system",
    "history",
    "tools",
    "text",
]
Columns = Annotated[dict[FieldName, ColumnName], Field(min_length=1)]


class WeightedFile(Request):
    """One of several files of a job; with weight 0.5 an epoch sees half of its rows, with 2 each twice."""

    id: FileId
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0


class DatasetRequest(Request):
    """How the rows become training examples.

    Attributes:
        files: beside `training_file`, whose weight is 1 unless it is listed here too.
        columns: our field to the user's column, such as {"instruction": "question", "output": "answer"}.
        template: name of a template in Luthier's table, or a format string with columns in braces, whose text
            is trained on whole; None for the model's own.
        max_samples: at most so many rows of each file, the first ones.
        validation_rows: as `validation_split`, as a number.
        style: `llamafactory` renders, cuts and masks as that system does.
        thoughts: for that style, of reasoning templates: an answer without a thought learns an empty one
            (`learn`) or finds it in its prompt (`give`); with `remove` no answer keeps its thoughts, and each
            finds an empty one.
    """

    files: list[WeightedFile] = Field(default_factory=list, max_length=32)
    columns: Columns | None = None
    template: Annotated[str, StringConstraints(min_length=1, max_length=32_768)] | None = None
    train_on: Literal["assistant", "last", "all"] = "assistant"
    on_bad_row: Literal["refuse", "drop"] = "refuse"
    overlength: Literal["truncate", "drop", "raise"] = "truncate"
    max_samples: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    validation_split: Annotated[float, Field(ge=0, lt=1)] = 0.0
    validation_rows: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    style: Literal["luthier", "llamafactory"] = "luthier"
    thoughts: Literal["learn", "give", "remove"] = "learn"

    @model_validator(mode="after")
    def _consistent(self) -> "DatasetRequest":
        if self.validation_split > 0 and self.validation_rows is not None:
            raise ValueError("validation_split and validation_rows exclude each other: give one of them")
        if self.thoughts != "learn" and self.style != "llamafactory":
            raise ValueError("thoughts is for style 'llamafactory': leave it out")
        ids = [file.id for file in self.files]
        if len(set(ids)) < len(ids):
            raise ValueError("files names a file twice: give it once, with the sum of the weights")
        return self

    @property
    def holds_out_rows(self) -> bool:
        """Whether rows of the training files are kept for validation."""
        return self.validation_split > 0 or self.validation_rows is not None


MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Suffix = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
]


class ResourcesRequest(Request):
    """What a device must have for a job to be given to it.

    Attributes:
        gpus: how many; 1 also where training runs on a CPU.
        memory_gb: of one device, in GiB; without it what the estimate says counts.
        labels: that the worker must carry, all of them (`LUTHIER_LABELS`).
    """

    gpus: Annotated[int, Field(ge=1, le=8)] = 1
    memory_gb: Annotated[float, Field(gt=0, le=4096)] | None = None
    labels: list[Label] = Field(default_factory=list, max_length=6)


class HubTokenRequest(Request):
    """Which secret of the project the base model is fetched with."""

    secret: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]


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
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]{0,127}$")] | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    resources: ResourcesRequest = ResourcesRequest()
    hub_token: HubTokenRequest | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "JobRequest":
        if self.seed is not None and self.qlora.seed is not None and self.seed != self.qlora.seed:
            raise ValueError("seed and qlora.seed differ: give one of them")
        if self.qlora.learning_rate is not None and self.asked.learning_rate_multiplier != "auto":
            raise ValueError(
                "qlora.learning_rate and learning_rate_multiplier exclude each other: give one of them"
            )
        if self.qlora.epochs is not None and self.asked.n_epochs != "auto":
            raise ValueError("qlora.epochs and n_epochs exclude each other: give one of them")
        if self.validation_file is not None and self.dataset.holds_out_rows:
            raise ValueError(
                "validation_file and dataset.validation_split (or validation_rows) exclude each other: give "
                "one of them"
            )
        return self

    @property
    def training_files(self) -> dict[str, float]:
        """The ids of all training files, `training_file` first, and the weight of each."""
        listed = {file.id: file.weight for file in self.dataset.files}
        return {self.training_file: listed.pop(self.training_file, 1.0)} | listed

    @property
    def asked(self) -> HyperparametersRequest:
        """OpenAI's three, each from `method` or from the deprecated top level; `method` wins."""
        deprecated = self.hyperparameters or HyperparametersRequest()
        if self.method is None or self.method.supervised is None:
            return deprecated
        own = self.method.supervised.hyperparameters
        return deprecated.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})
