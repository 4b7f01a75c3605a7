"""What is trained, for how long and in which numbers: the part `qlora` of a body, from a LLaMA-Factory job.

Each function reads what belongs together and returns the part that it makes; defaults are that system's.
"""

from typing import Any

from luthier.errors import printable
from luthier.llamafactory.values import Reading, Values, is_number

_OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_32bit": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
}
_SCHEDULERS = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "cosine_with_restarts": "cosine",
    "cosine_with_min_lr": "cosine",
}
_SCHEDULER_SETTINGS = {
    "cosine_with_restarts": {"num_cycles"},
    "cosine_with_min_lr": {"min_lr", "min_lr_rate"},
}


def method(reading: Reading) -> dict[str, Any]:
    """What is trained, on a base in which numbers."""
    values = reading.values
    kind = values.choice("finetuning_type", {"lora": "lora", "full": "full", "freeze": "freeze"})
    bits = values.integer("quantization_bit")
    values.choice("quantization_method", {"bnb": None, "bitsandbytes": None})
    quantization = values.choice("quantization_type", {"nf4": "nf4", "fp4": "fp4"})
    if bits not in (None, 4, 8):
        values.wrong("quantization_bit", f"takes 4 or 8, not {bits}", "refused")
    if kind != "lora":
        if bits is not None:
            values.wrong("quantization_bit", f"finetuning_type {kind} trains the weights: leave it out")
        return _whole_weights(reading, kind)
    if bits is None:
        return {"method": "lora"} | _adapters(reading)
    if values.flag("pissa_init"):
        values.wrong(
            "pissa_init", "splits the weights of a base that is not quantised: leave quantization_bit out"
        )
    settings: dict[str, Any] = {"method": "qlora", "quantization": "int8" if bits == 8 else quantization}
    if bits == 4:
        settings["double_quant"] = values.flag("double_quantization")
    return settings | _adapters(reading)


def _whole_weights(reading: Reading, kind: str) -> dict[str, Any]:
    values = reading.values
    asked = {name: values.flag(name) for name in ("use_rslora", "use_dora", "pissa_init")}
    asked["loraplus_lr_ratio"] = values.number("loraplus_lr_ratio") is not None
    for name in [name for name, is_asked in asked.items() if is_asked]:
        values.wrong(name, f"is for finetuning_type lora, not {kind}: leave it out")
    if kind == "full":
        return {"method": "full"}
    count = values.integer("freeze_trainable_layers") or 0
    if count < 1:
        values.wrong("freeze_trainable_layers", "takes 1 and more: the last layers are trained", "refused")
        count = 1
    return {"method": "full", "trainable_layers": count}


def _adapters(reading: Reading) -> dict[str, Any]:
    values = reading.values
    rank = values.integer("lora_rank") or 0
    targets = values.names("lora_target")
    settings = {
        "r": rank,
        "alpha": float(values.number("lora_alpha") or 2 * rank),
        "dropout": values.number("lora_dropout"),
        "target_modules": "all-linear" if targets in ([], ["all"]) else targets,
        "use_rslora": values.flag("use_rslora"),
        "use_dora": values.flag("use_dora"),
        "init_lora_weights": "pissa" if values.flag("pissa_init") else "default",
    }
    if (ratio := values.number("loraplus_lr_ratio")) is not None:
        settings["loraplus_lr_ratio"] = ratio
    return settings


def schedule(reading: Reading) -> dict[str, Any]:
    """The learning rate over the run, and the optimizer."""
    values = reading.values
    name = (values.text("lr_scheduler_type") or "").lower()
    settings = {
        "lr_scheduler": values.choice("lr_scheduler_type", _SCHEDULERS),
        "learning_rate": values.number("learning_rate"),
        "optimizer": values.choice("optim", _OPTIMIZERS),
        "weight_decay": values.number("weight_decay"),
        "max_grad_norm": values.number("max_grad_norm"),
    }
    if (alpha := values.number("neftune_noise_alpha")) is not None:
        settings["neftune_alpha"] = alpha
    return settings | _shape(reading, name) | _warmup(reading, name)


def _shape(reading: Reading, name: str) -> dict[str, Any]:
    """Restarts and the least learning rate."""
    values = reading.values
    given = values.mapping("lr_scheduler_kwargs")
    for key in sorted(set(given) - _SCHEDULER_SETTINGS.get(name, set())):
        text = f"'{printable(key, 40)}' is not understood with this lr_scheduler_type"
        values.wrong("lr_scheduler_kwargs", text)
    numbers = {key: value for key, value in given.items() if is_number(value)}
    if len(numbers) < len(given):
        values.wrong("lr_scheduler_kwargs", "expected numbers")
    if name == "cosine_with_restarts":
        cycles = numbers.get("num_cycles", 1)
        if cycles < 1 or cycles != int(cycles):
            values.wrong(
                "lr_scheduler_kwargs", f"num_cycles takes whole numbers from 1, not {cycles}", "refused"
            )
            return {}
        return {"lr_restarts": int(cycles) - 1}
    if name != "cosine_with_min_lr":
        return {}
    if len(given) != 1:
        values.wrong("lr_scheduler_kwargs", "cosine_with_min_lr needs min_lr or min_lr_rate", "missing")
        return {}
    rate = values.number("learning_rate") or 1.0
    return {"min_lr_ratio": float(numbers.get("min_lr_rate", numbers.get("min_lr", 0.0) / rate))}


def _warmup(reading: Reading, name: str) -> dict[str, Any]:
    """Steps go before the ratio, and a plain constant schedule has no warmup."""
    steps, ratio = reading.values.number("warmup_steps") or 0, reading.values.number("warmup_ratio") or 0.0
    if name == "constant":
        if steps or ratio:
            reading.note(
                "lr_scheduler_type", "constant has no warmup there and here; see constant_with_warmup"
            )
        return {"warmup_steps": 0}
    if 0 < steps < 1:
        return {"warmup_ratio": float(steps)}
    if steps > 0:
        return {"warmup_steps": reading.values.integer("warmup_steps")}
    return {"warmup_ratio": float(ratio)}


def length(reading: Reading) -> tuple[dict[str, Any], dict[str, Any]]:
    """How long a run is: the hyperparameters, and the settings beside them."""
    values = reading.values
    hyperparameters: dict[str, Any] = {"batch_size": values.integer("per_device_train_batch_size")}
    settings: dict[str, Any] = {"gradient_accumulation": values.integer("gradient_accumulation_steps")}
    # Above 0 they stand in the place of the epochs.
    if (max_steps := values.integer("max_steps") or -1) > 0:
        return hyperparameters, settings | {"max_steps": max_steps}
    epochs = values.number("num_train_epochs") or 0
    if epochs != int(epochs):
        return hyperparameters, settings | {"epochs": epochs}
    return hyperparameters | {"n_epochs": int(epochs)}, settings


def memory(reading: Reading) -> dict[str, Any]:
    """Precision, recomputation and the length of a row."""
    values = reading.values
    settings: dict[str, Any] = {"precision": _precision(values), "packing": _packing(reading)}
    if values.flag("disable_gradient_checkpointing"):
        settings["gradient_checkpointing"] = False
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        if name in values and values.flag(name):
            settings.setdefault("gradient_checkpointing", True)
    if values.flag("auto_find_batch_size"):
        settings["auto_fit"] = True
    # Where it is not given, our default is the same length and gives way to a shorter context.
    if "cutoff_len" in values:
        settings["max_seq_length"] = values.integer("cutoff_len")
    return settings


def _precision(values: Values) -> str:
    bf16 = values.flag("bf16") or values.flag("pure_bf16")
    if bf16 and values.flag("fp16"):
        values.wrong("fp16", "excludes bf16: give one of them")
    if bf16:
        return "bf16"
    return "fp16" if values.flag("fp16") else "auto"


def _packing(reading: Reading) -> bool:
    neat, plain = reading.values.flag("neat_packing"), reading.values.flag("packing")
    if plain and not neat:
        text = "rows that share a sequence do not see each other, which is that system's neat_packing"
        reading.note("packing", text)
    return neat or plain
