"""How fast files are validated and tokenised, beside the `datasets` library doing the same in the same run.

    python bench/data.py [--only validate|tokenise] [--repeats 3] [--json results.json]

Files are generated, and the page cache holds them; nothing is fetched. What each half compares is told in
`data_validation.py` and `data_tokens.py`; a table ends with the peer, and its ratios are to that line.
"""

import argparse
import json
import os
import platform
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

import data_tokens
import data_validation
from datasets import disable_progress_bars
from measuring import Result

_LIBRARIES = ("msgspec", "orjson", "pyarrow", "tokenizers", "transformers", "datasets")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["validate", "tokenise"], help="one half")
    parser.add_argument("--megabytes", type=int, default=100, help="size of the file to validate")
    parser.add_argument("--rows", type=int, default=data_tokens.ROWS, help="rows to tokenise")
    parser.add_argument("--model", type=Path, help="folder with tokenizer.json and tokenizer_config.json")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest one counts")
    parser.add_argument("--json", type=Path, help="where to write the results too")
    options = parser.parse_args()
    disable_progress_bars()
    about = machine()
    print(json.dumps(about))
    found: dict[str, list[Result]] = {}
    with tempfile.TemporaryDirectory() as name:
        if options.only != "tokenise":
            found["validate"] = data_validation.compare(Path(name), options.megabytes, options.repeats)
            show("validation, one core", found["validate"])
        if options.only != "validate":
            found["tokenise"] = data_tokens.compare(Path(name), options.rows, options.model, options.repeats)
            show("tokenisation, two cores", found["tokenise"])
    if options.json:
        told = {half: [asdict(result) for result in results] for half, results in found.items()}
        options.json.write_text(json.dumps({"machine": about} | told, indent=1) + "\n")


def machine() -> dict[str, str]:
    """Where this was measured, and with what."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    # Processors of ARM have no such line.
    models = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return {
        "processor": next(models, platform.machine()),
        "cores": str(len(os.sched_getaffinity(0))),
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
    } | {name: version(name) for name in _LIBRARIES}


def show(title: str, results: list[Result]) -> None:
    """A table; ratios are of the rates, to the last line."""
    print(f"\n{title:32} {'cpu s':>8} {'wall s':>8} {'MB/s':>8} {'rows/s':>10} {'tokens':>12} {'ratio':>7}")
    for item in results:
        ratio = item.rows_per_second / results[-1].rows_per_second
        tokens = "" if item.tokens is None else f"{item.tokens:,}"
        print(
            f"{item.what:32} {item.cpu_seconds:8.2f} {item.seconds:8.2f} {item.megabytes_per_second:8.1f} "
            f"{item.rows_per_second:10.0f} {tokens:>12} {ratio:6.1f}x"
        )


if __name__ == "__main__":
    main()
