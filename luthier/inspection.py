"""Whether the folder of a base model is safe to load and can be fine-tuned, told from its files alone.

A model's files never vote on what code runs: settings that name code are refused here, before any library has
read them, and weights are safetensors whose headers hold together. Nothing is imported or executed.
Cases: CVE-2026-4372 (code from the hub through an attention setting), CVE-2026-5843 (`model_file`).
"""

import json
import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError, printable

CONFIG, TOKENIZER, INDEX = "config.json", "tokenizer.json", "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")

_MAX_SETTINGS_BYTES = 8 << 20
_MAX_INDEX_BYTES = 64 << 20
# What the hub's own client takes; a header of a 70B model's shard has some 100 kB.
_MAX_HEADER_BYTES = 25_000_000
_MAX_TENSORS = 200_000

_CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "_attn_implementation_internal", "model_file"})
# A value with a slash names a repository that kernels are taken from.
_KERNEL_KEYS = ("attn_implementation", "experts_implementation", "kernel")
_CAUSAL = ("ForCausalLM", "LMHeadModel")
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


def check_config(folder: Path) -> None:
    """Check everything in a model's folder that loading it will rely on.

    Raises:
        LuthierError: `model_not_supported`, naming the file and what is wrong in it.
    """
    if not (folder / CONFIG).is_file():
        raise _unsupported("it has no config.json, so it is no model that can be loaded")
    for path in sorted(folder.glob("*config.json")):
        check_settings(path)
    if not (folder / TOKENIZER).is_file():
        raise _unsupported(
            "it has no tokenizer.json: convert its tokenizer with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    weights = weight_files([path.name for path in folder.iterdir()])
    if weights != [_SINGLE]:
        _check_index(folder, weights)
    for name in weights:
        _check_safetensors(folder / name)


def check_settings(path: Path) -> None:
    """Check one file of settings: config.json, tokenizer_config.json, generation_config.json.

    Raises:
        LuthierError: `model_not_supported`: a setting names code, or config.json does not describe a causal
            language model that is not quantised.
    """
    settings = read_object(path, _MAX_SETTINGS_BYTES)
    for place, key, value in _all_settings(settings):
        names_kernel = isinstance(value, str) and "/" in value and any(k in place for k in _KERNEL_KEYS)
        if (key in _CODE_KEYS and value) or names_kernel:
            raise _unsupported(
                f"{path.name} has {printable(place)}, which would run code that comes with the model; "
                "use a copy of it that transformers loads without"
            )
    if path.name == CONFIG:
        _check_kind(settings)


def weight_files(names: Collection[str]) -> list[str]:
    """Those of a model's files that hold its weights as transformers finds them.

    Raises:
        LuthierError: `model_not_supported`: there are none, or only such as can carry code.
    """
    if _SINGLE in names:
        return [_SINGLE]
    shards = sorted(name for name in names if _SHARD.fullmatch(name))
    if shards and INDEX in names:
        return shards
    if "adapter_config.json" in names:
        raise _unsupported("it is an adapter and not a base model: name the model that it was trained on")
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        raise _unsupported("its weights are pickles, which can carry code: use a copy in safetensors")
    raise _unsupported(f"it has no weights: neither {_SINGLE} nor shards with {INDEX}")


def read_object(path: Path, max_bytes: int = _MAX_SETTINGS_BYTES) -> dict[str, Any]:
    """The JSON object in a model's file.

    Raises:
        LuthierError: `model_not_supported`: it is missing, too large, or not a JSON object.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise _unsupported(f"{path.name} is larger than {max_bytes >> 20} MiB")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unsupported(f"{path.name} cannot be read as JSON ({type(error).__name__})") from error
    if not isinstance(data, dict):
        raise _unsupported(f"{path.name} is not a JSON object")
    return data


def _all_settings(settings: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Every value at every depth: its dotted place, its key and itself, names in lower case."""
    pending: list[tuple[str, Any]] = [("", settings)]
    while pending:
        above, value = pending.pop()
        items = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for name, inner in items:
            key = str(name).lower()
            place = f"{above}.{key}" if above else key
            yield place, key, inner
            pending.append((place, inner))


def _check_kind(config: dict[str, Any]) -> None:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or not name.endswith(_CAUSAL):
        raise _unsupported(
            f"config.json names the architecture {printable(str(name))}; fine-tuning needs a causal language "
            "model (…ForCausalLM)"
        )
    if config.get("quantization_config"):
        raise _unsupported("it is quantised already: use the original weights, Luthier quantises on loading")


def _check_index(folder: Path, shards: list[str]) -> None:
    weight_map = read_object(folder / INDEX, _MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _unsupported(f"{INDEX} has no weight_map")
    missing = sorted({str(name) for name in weight_map.values()} - set(shards))
    if missing:
        raise _unsupported(f"{INDEX} names {printable(missing[0])}, which is not there")


def _check_safetensors(path: Path) -> None:
    """Refuse a file whose header does not describe exactly the bytes behind it.

    Source: the format's own rules, https://github.com/huggingface/safetensors#format.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
            raise _damaged(path, "the length of its header does not fit the file")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise _damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict) or len(header) > _MAX_TENSORS:
        raise _damaged(path, "its header is not a list of tensors")
    header.pop("__metadata__", None)
    end = 0
    for start, stop in sorted(_extent(path, str(name), tensor) for name, tensor in header.items()):
        if start != end:
            raise _damaged(path, "its tensors overlap or leave holes")
        end = stop
    if end != size - 8 - length:
        raise _damaged(path, "its tensors do not fill the file: it is cut short or has more behind them")


def _extent(path: Path, name: str, tensor: Any) -> tuple[int, int]:
    """The bytes that a tensor claims, from and up to."""
    match tensor:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]}:
            whole = all(isinstance(side, int) and side >= 0 for side in shape)
            if dtype in _BITS and whole and 8 * (stop - start) == math.prod(shape) * _BITS[dtype]:
                return start, stop
    raise _damaged(path, f"the entry of {printable(name)} has a wrong type, shape or place")


def _damaged(path: Path, reason: str) -> LuthierError:
    return _unsupported(f"{path.name} is not a sound safetensors file: {reason}; fetch it again")


def _unsupported(reason: str) -> LuthierError:
    return LuthierError(f"The model cannot be fine-tuned: {reason}", "model_not_supported", "model")
