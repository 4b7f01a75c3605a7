"""How looks at data are shown: a validation report, rows with their trained tokens, an estimate.

Trained tokens stand in colour and all others dim; where there is no colour, trained ones stand in brackets.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.text import Text

from luthier.cli.terminal import console, duration_of, has_colour, print_table, say, size_of
from luthier.client import Estimate, Validation

_SHOWN_ERRORS, _SHOWN_DETAILS, _SHOWN_LINES = 20, 100, 5
_TRAINED, _MASKED = "bold green", "dim"


def summary_of(report: Validation) -> str:
    """A report in one line."""
    parts = [f"{report.row_count:,} rows of {report.format or 'an unknown form'}", size_of(report.size_bytes)]
    if report.error_count:
        parts.append("1 error" if report.error_count == 1 else f"{report.error_count:,} errors")
    parts += [f"{warning['code']} ({warning['count']:,})" for warning in report.warnings]
    return "; ".join(parts)


def print_report(report: Validation) -> None:
    """A report as tables: what the file is, its errors by line, its warnings, and its tokens."""
    say(f"{'valid' if report.valid else 'NOT VALID'}: {summary_of(report)}")
    if report.errors:
        alike = list(_alike(report.errors))[:_SHOWN_ERRORS]
        rows = [(_lines(lines), code, message) for code, message, lines in alike]
        print_table(("LINE", "ERROR", "MESSAGE"), rows)
        shown = sum(len(lines) for _, _, lines in alike)
        if report.error_count > shown:
            say(f"and {report.error_count - shown:,} more errors")
    if report.warnings:
        print_table(
            ("COUNT", "LINES", "WARNING", "MESSAGE"),
            [
                (each["count"], _lines(each.get("lines") or []), each["code"], each["message"])
                for each in report.warnings
            ],
        )
    if report.statistics and report.statistics.get("characters"):
        print_table(("OF ROWS", "COUNT", "MEAN", "P50", "P90", "MAX"), _statistics(report.statistics))
    if report.tokens:
        print_table(("TOKENS", ""), _token_lines(report.tokens))


def print_preview(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows, each under a line that tells what becomes of it."""
    for row in rows:
        fate = "dropped" if row["is_dropped"] else "cut" if row["is_truncated"] else "kept"
        say(
            f"line {row['line']}: {row['token_count']} tokens, {row['trained_token_count']} of them trained, "
            f"{fate}"
        )
        console().print(_marked(row))
        for warning in row["warnings"]:
            say(f"  {warning}")


def print_estimate(estimate: Estimate, *, stderr: bool = False) -> None:
    """An estimate as a table, and under it what is wrong."""
    print_table(("ESTIMATE", ""), _estimate_lines(estimate), stderr=stderr)
    for kind, remarks in (("problem", estimate.problems), ("warning", estimate.warnings)):
        for remark in remarks:
            place = f" ({remark['param']})" if remark.get("param") else ""
            say(f"{kind}: {remark['message']}{place}")
    if estimate.unavailable_reason:
        say(f"not all can be told: {estimate.unavailable_reason}")


def say_details(details: Sequence[Mapping[str, Any]]) -> None:
    """What a failure tells beside its message, a line each, with the numbers that stand in it."""
    for detail in details[:_SHOWN_DETAILS]:
        numbers = [
            f"{name.replace('_', ' ')} {value:,}"
            for name, value in detail.items()
            if name != "line" and isinstance(value, int)
        ]
        say(": ".join([f"  {detail.get('message')}", *([", ".join(numbers)] if numbers else [])]))
    if len(details) > _SHOWN_DETAILS:
        say(f"  and {len(details) - _SHOWN_DETAILS:,} more")


def _alike(errors: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, list[int]]]:
    """Code, message and lines of errors, those that say the same in one; the line is told beside."""
    found: dict[tuple[str, str], list[int]] = {}
    for error in errors:
        line = error["line"]
        message = error["message"].removeprefix(f"Line {line}: ")
        found.setdefault((error["code"], message), []).append(line)
    yield from ((code, message, lines) for (code, message), lines in found.items())


def _lines(lines: Sequence[int | None]) -> str:
    told = [str(line) for line in lines if line is not None]
    more = f" and {len(told) - _SHOWN_LINES} more" if len(told) > _SHOWN_LINES else ""
    return ", ".join(told[:_SHOWN_LINES]) + more


def _statistics(statistics: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Turns of a row, and characters of a turn by role."""
    spreads = {"turns": statistics.get("messages")}
    spreads |= {f"characters, {role}": spread for role, spread in statistics["characters"].items()}
    for name, spread in spreads.items():
        if spread:
            numbers = (f"{spread[key]:,}" for key in ("count", "mean", "p50", "p90", "maximum"))
            yield (name, *numbers)


def _marked(row: Mapping[str, Any]) -> Text:
    """The text of a row, its trained parts marked; what is not kept is not shown."""
    is_coloured = has_colour()
    text = Text(end="\n\n")
    for is_trained, start, end in _spans(row["tokens"]):
        part = row["text"][start:end]
        if is_coloured:
            text.append(part, _TRAINED if is_trained else _MASKED)
        else:
            text.append(f"[{part}]" if is_trained and part else part)
    return text


def _spans(tokens: Sequence[Mapping[str, Any]]) -> Iterator[tuple[bool, int, int]]:
    """Neighbours of one kind as one piece; tokens that share a character are joined."""
    end = 0
    for is_trained, group in groupby(tokens, key=lambda token: bool(token["is_trained"])):
        places = [(token["start"], token["end"]) for token in group]
        start = max(end, places[0][0])
        end = max(end, places[-1][1])
        yield is_trained, start, end


def _token_lines(tokens: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "rows measured", f"{tokens['measured_row_count']:,}"
    yield "tokens", f"{tokens['token_count']:,}"
    yield "trained on", f"{tokens['trained_token_count']:,}"
    yield "longest row", f"{tokens['longest']:,}"
    yield "rows cut", f"{tokens['truncated_ratio']:.1%}"
    yield "answers that lose tokens", f"{tokens['lost_answer_ratio']:.1%}"
    edges, counts = tokens["histogram"]["edges"], tokens["histogram"]["counts"]
    for index, (edge, count) in enumerate(zip(edges, counts, strict=True)):
        below = f" to {edges[index + 1] - 1:,}" if index + 1 < len(edges) else " and more"
        if count:
            yield f"rows of {edge:,}{below} tokens", f"{count:,}"


def _estimate_lines(estimate: Estimate) -> Iterator[tuple[str, str]]:
    counts = {
        "rows": estimate.examples,
        "rows cut": estimate.truncated_examples,
        "steps": estimate.steps,
        "tokens in training": estimate.train_tokens,
    }
    yield from ((name, f"{count:,}") for name, count in counts.items() if count is not None)
    if estimate.tokens is not None:
        yield "counted", _how(estimate.tokens)
    if estimate.memory is not None:
        there = estimate.memory["available_mb"]
        yield (
            "memory",
            f"{estimate.memory['needed_mb']:,} MiB of {'unknown' if there is None else f'{there:,} MiB'}",
        )
    if estimate.seconds is not None:
        half, most = duration_of(estimate.seconds["p50"]), duration_of(estimate.seconds["p90"])
        yield "time", f"{half} (in 9 of 10 cases at most {most})"
    if estimate.disk_mb is not None:
        yield "disk", f"{estimate.disk_mb:,} MiB"


def _how(tokens: Mapping[str, Any]) -> str:
    return "exactly" if tokens["is_exact"] else f"from a sample, within {tokens['relative_error']:.0%}"
