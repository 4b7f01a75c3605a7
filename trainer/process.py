"""The edge of a training process: a run folder in, an exit code of `luthier.errors.ExitCode` out.

Reads `spec.json`, appends to `events.jsonl`, whose last line is `run_ended` whatever happens, and tells with
code 1 of a fault of the program. It knows no signals, those are `__main__`'s.
"""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from luthier.errors import ExitCode, JobFailure
from luthier.events import EventWriter, RunEnded
from luthier.spec import SPEC_VERSION, TrainSpec, field_path
from trainer.beat import Beat

_EXIT_OF_OUTCOME = {"done": ExitCode.DONE, "stopped": ExitCode.STOPPED}
_PROGRAM_FAULT = 1


def run(arguments: list[str], should_stop: Callable[[], bool]) -> int:
    """Run the spec of the one folder that `arguments` name; the return value is the exit code."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -P -m trainer RUN_FOLDER", file=sys.stderr)
        return ExitCode.BAD_SPEC
    run_folder = Path(arguments[0]).resolve()
    events = EventWriter(run_folder / "events.jsonl")
    ended, exit_code = _outcome(run_folder, events, Beat(run_folder, should_stop))
    # On a full disk the event may not fit either; the exit code still tells.
    with contextlib.suppress(OSError):
        events.write(ended)
    events.close()
    return exit_code


def _outcome(run_folder: Path, events: EventWriter, should_stop: Callable[[], bool]) -> tuple[RunEnded, int]:
    try:
        spec = read_spec(run_folder / "spec.json")
        _set_environment(spec)
        _silence_known_notes()
        if should_stop():
            return RunEnded(outcome="stopped"), ExitCode.STOPPED
        # The libraries read the environment as they are imported, and take seconds: a bad spec has been told.
        from trainer.recipe import train  # noqa: PLC0415

        ended = train(spec, run_folder, events, should_stop)
        return ended, _EXIT_OF_OUTCOME[ended.outcome]
    except JobFailure as failure:
        traceback.print_exc()
        ended = RunEnded(
            outcome="failed",
            code=failure.code,
            message=failure.message,
            param=failure.param,
            details=list(failure.details),
        )
        return ended, failure.exit_code
    # The edge: whoever waits has to be told; a panic in a library written in Rust is no Exception.
    except BaseException as error:  # noqa: BLE001
        traceback.print_exc()
        message = f"The trainer failed: {type(error).__name__}. The run's log has the details"
        return RunEnded(outcome="failed", code="server_error", message=message), _PROGRAM_FAULT


def read_spec(path: Path) -> TrainSpec:
    """The spec of a training run.

    Raises:
        JobFailure: the file is missing, or is not a spec that this version understands.
    """
    try:
        spec = TrainSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        raise _bad_spec(f"spec.json cannot be read: {error.strerror}", None) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = field_path(first["loc"]) or None
        raise _bad_spec(f"spec.json: {param or 'the document'}: {first['msg']}", param) from error
    if spec.spec_version != SPEC_VERSION:
        raise _bad_spec(
            f"spec.json has version {spec.spec_version}, this trainer reads {SPEC_VERSION}", "spec_version"
        )
    return spec


def _bad_spec(message: str, param: str | None) -> JobFailure:
    return JobFailure(message, "invalid_spec", ExitCode.BAD_SPEC, param)


def _silence_known_notes() -> None:
    """Hide what bitsandbytes 0.50 says as it is imported on a CPU with AVX512-BF16.

    It asks for a package of kernels that serve inference alone; `trainer.model` keeps their way closed.
    """
    noted = logging.getLogger("bitsandbytes.backends.cpu.ops")
    noted.addFilter(lambda record: "gemm_4bit_forward" not in str(record.msg))


def _set_environment(spec: TrainSpec) -> None:
    """Offline, silent, on one device; what the supervisor has set stays."""
    defaults = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Batches differ in length; without this, freed blocks of one size do not serve the next.
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if spec.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
