"""`python -m tests.fuzz`: thousands of requests from the OpenAPI document, and none may be answered wrongly.

`make fuzz` runs the whole. A failure shows the request as a line of curl, and the seed that makes it again.
"""

import argparse
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import structlog

from tests.fuzz.site import Site, running_site

_HERE = Path(__file__).parent
# They last as long as their job; the tests of streams listen to them.
_LASTING = ("stream_events", "stream_jobs")


def fuzz(site: Site, *, seed: int, max_examples: int, phases: str, more: list[str]) -> int:
    """Run schemathesis; returns its exit code, 0 where nothing failed."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(_HERE / "schemathesis.toml"),
        "run", f"{site.url}/openapi.json", "--header", f"Authorization: Bearer {site.key}",
        "--checks", "all", "--phases", phases, "--max-examples", str(max_examples), "--seed", str(seed),
        "--max-response-time", "10", "--continue-on-failure", "--no-color",
        "--suppress-health-check", "all",
        *(f"--exclude-operation-id={name}" for name in _LASTING),
        *more,
    ]  # fmt: skip
    environment = os.environ | {
        "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks",
        "FUZZ_FILE_IDS": ",".join(site.file_ids),
        "FUZZ_JOB_IDS": ",".join(site.job_ids),
        "FUZZ_SEED": str(seed),
        "PYTHONPATH": str(_HERE.parents[1]),
    }
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(command, env=environment, cwd=folder, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-examples", type=int, default=100, help="of an operation and phase")
    parser.add_argument("--phases", default="examples,coverage,fuzzing,stateful")
    arguments, more = parser.parse_known_args()
    # What goes wrong is told in plain text: to draw a traceback with its variables takes seconds.
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    with tempfile.TemporaryDirectory() as folder, running_site(Path(folder) / "data") as site:
        return fuzz(
            site,
            seed=arguments.seed,
            max_examples=arguments.max_examples,
            phases=arguments.phases,
            more=more,
        )


if __name__ == "__main__":
    sys.exit(main())
