"""What a user of Weights & Biases does after a job: its logger reads the job, its results and its files.

A program of its own, whose argument is a `Running` of conftest.py in JSON. It works offline and prints what
was logged: the keys of the history, by how many rows have them.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import wandb
from openai import OpenAI
from wandb.integration.openai.fine_tuning import WandbLogger


def main(there: dict[str, Any]) -> None:
    logged: Counter[str] = Counter()
    log = wandb.Run.log

    def watched(run: wandb.Run, data: dict[str, Any], *args: Any, **fields: Any) -> None:
        logged.update(data.keys())
        log(run, data, *args, **fields)

    # Offline it cannot verify a login, and so believes in none.
    WandbLogger._logged_in = True
    with (
        OpenAI(base_url=there["url"], api_key=there["key"], max_retries=0) as client,
        mock.patch.object(wandb.Run, "log", watched),
        # The last step with a data set, which it refuses offline.
        mock.patch.object(wandb.Run, "use_artifact"),
    ):
        said = WandbLogger.sync(fine_tune_job_id=there["tuned"], openai_client=client, project="luthier")
    kept = sum(path.stat().st_size for path in Path("wandb").rglob("run-*.wandb"))
    print(json.dumps({"said": said, "logged": logged, "kept_bytes": kept}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
