"""A job in other words: as commands with curl, and as a program with the `openai` package.

What is made here can be run as it stands, with the key in LUTHIER_API_KEY.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

# What OpenAI's API has; its package takes the rest as `extra_body`.
_OPENAI_FIELDS = ("model", "suffix", "seed", "metadata", "method")

_CURL = """\
FILE=$(curl -sS {url}/v1/files -H "Authorization: Bearer $LUTHIER_API_KEY" \\
  -F purpose=fine-tune -F file=@{dataset} \\
  | python3 -c 'import json, sys; a = json.load(sys.stdin); print(a.get("id") or sys.exit(str(a)))')
curl -sS --fail-with-body {url}/v1/fine_tuning/jobs -H "Authorization: Bearer $LUTHIER_API_KEY" \\
  -H "Content-Type: application/json" -d @- <<JOB
{body}
JOB"""

_PYTHON = """\
import os
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url={url!r}, api_key=os.environ["LUTHIER_API_KEY"])
file = client.files.create(file=Path({dataset!r}), purpose="fine-tune")
job = client.fine_tuning.jobs.create(
    training_file=file.id,
{named}    extra_body={extra!r},
)
print(job.id, job.status)"""


def as_curl(url: str, dataset: Path, body: Mapping[str, Any]) -> str:
    """Shell commands that upload the dataset and submit the job; the shell puts in the file's id."""
    asked = json.dumps({**body, "training_file": "$FILE"}, indent=2)
    return _CURL.format(url=url, dataset=quote(str(dataset)), body=asked)


def as_python(url: str, dataset: Path, body: Mapping[str, Any]) -> str:
    """A program that does the same."""
    named = "".join(f"    {name}={body[name]!r},\n" for name in _OPENAI_FIELDS if name in body)
    extra = {name: value for name, value in body.items() if name not in (*_OPENAI_FIELDS, "training_file")}
    return _PYTHON.format(url=f"{url}/v1", dataset=str(dataset), named=named, extra=extra)
