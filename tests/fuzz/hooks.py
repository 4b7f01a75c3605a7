"""What requests made at random are about: half of the valid ones name files and jobs that there are."""

import os
import random

import schemathesis

_FILE_IDS = os.environ["FUZZ_FILE_IDS"].split(",")
_JOB_IDS = os.environ["FUZZ_JOB_IDS"].split(",")
_draw = random.Random(int(os.environ["FUZZ_SEED"]))


@schemathesis.hook
def before_call(
    context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, object]
) -> None:
    """Put ids that there are into a valid request."""
    # A followed log lasts as long as its job.
    (case.query or {}).pop("stream", None)
    meta = case.meta
    if meta is None or not meta.generation.mode.is_positive or _draw.random() < 0.5:
        return
    if case.path_parameters:
        for name, ids in (("job_id", _JOB_IDS), ("file_id", _FILE_IDS)):
            if name in case.path_parameters:
                case.path_parameters[name] = _draw.choice(ids)
        if "model_id" in case.path_parameters:
            case.path_parameters["model_id"] = "tiny"
    if isinstance(case.body, dict):
        if "training_file" in case.body:
            case.body["training_file"] = _draw.choice(_FILE_IDS)
        if "model" in case.body:
            case.body["model"] = "tiny"
