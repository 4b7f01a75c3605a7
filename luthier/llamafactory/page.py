"""docs/llamafactory.md, printed from the table: every argument and what becomes of it.

`python -m luthier.llamafactory` prints it, and a test compares it with what stands in docs. It knows no
argument of its own.
"""

from collections.abc import Iterator
from typing import Any

from luthier.llamafactory.table import ARGUMENTS, GROUPS, Argument, Group, Treatment

_HEAD = """\
# LLaMA-Factory's arguments

A LLaMA-Factory YAML is a job here, unchanged:

```
luthier train qwen_lora_sft.yaml                          # on this machine; datasets from dataset_dir
luthier train qwen_lora_sft.yaml lora_rank=16             # with a change
luthier train --model_name_or_path Qwen/Qwen2.5-1.5B --stage sft --do_train --finetuning_type lora \\
    --dataset alpaca_zh --template qwen --output_dir ./output --learning_rate 1e-4
luthier train qwen_lora_sft.yaml --dry-run                # what would run, with notes and its cost
luthier jobs create -f qwen_lora_sft.yaml                 # on a server; uploads and registers the datasets
curl http://127.0.0.1:8000/v1/fine_tuning/jobs -H "Authorization: Bearer $LUTHIER_API_KEY" \\
    -H "Content-Type: application/yaml" --data-binary @qwen_lora_sft.yaml
```

Over HTTP the names in `dataset` and `eval_dataset` are those that files were registered under
(`POST /v1/files/{id}/register`, whose `entry` is one of `dataset_info.json` as it stands there).
A file or body is taken for one of LLaMA-Factory's when it has `model_name_or_path`, `stage` or
`finetuning_type` at the top; one that has names of both forms is refused.

What is left out has that system's default, and rows are cut, masked and rendered by its rules. An argument is

- **honoured**: it means here what it means there;
- **mapped**: done by the field and in the way that stand beside it;
- **without effect**: any value is taken, and a note says that it changes nothing;
- **refused**: it stops the job, with the reason, unless its value asks for nothing (its default, or null).

All arguments that stop a job are told at once; one that LLaMA-Factory does not know stops it too.

The page is made from the table in `luthier/llamafactory/table/`: `python -m luthier.llamafactory`.
"""


def page() -> str:
    """The whole page."""
    counts = {kind: sum(each.treatment is kind for each in ARGUMENTS.values()) for kind in Treatment}
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    parts = [_HEAD, f"{len(ARGUMENTS)} arguments: {told}.\n"]
    return "\n".join([*parts, *(line for group in GROUPS for line in _section(group))])


def _section(group: Group) -> Iterator[str]:
    yield f"## {group.title}\n"
    yield "| argument | default | | |"
    yield "|---|---|---|---|"
    yield from (_row(argument) for argument in group.arguments)
    yield ""


def _row(argument: Argument) -> str:
    fields = ", ".join(f"`{name}`" for name in argument.fields)
    told = ": ".join(part for part in (fields, argument.note) if part)
    cells = (f"`{argument.name}`", _default(argument.default), str(argument.treatment), told)
    return f"| {' | '.join(cells)} |"


def _default(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value != "" else ""
