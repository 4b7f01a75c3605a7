"""What the good rows of a file have in common: sizes, repeats, leaks into the validation file, odd texts.

Validation adds batches of good rows to one `RowTally` and asks it at the end. Repeats are told by
fingerprints, so that memory does not grow with the file.
"""

from collections import defaultdict

from luthier.datasets.distributions import Histogram
from luthier.datasets.examples import Example, Issue
from luthier.datasets.fast_rows import Sifted
from luthier.datasets.fingerprints import Fingerprints, fingerprint_of
from luthier.datasets.report import MAX_SHOWN_LINES, Ledger, RowStatistics
from luthier.datasets.signs import find_signs, text_of

_MAX_HELD_CHARACTERS = 1_000_000
_SIGNS = {
    "content.control_chars": "has control characters (such as {}); were they meant?",
    "content.invisible_chars": "has invisible characters (such as {}); they are kept and tokenised",
    "encoding.mojibake": "has letters that look decoded wrongly (such as {}); was the text once not UTF-8?",
    "chat.special_tokens": "has marks of chat templates (such as {}); they are tokenised as plain text",
    "content.possible_secret": "has what looks like a secret ({}); the model would learn it by heart",
}


LEAKAGE = "split.leakage"


class RowTally:
    """What the good rows of a file have in common: sizes, repeats, and signs of trouble in their text.

    Attributes:
        held_out: rows of the validation file.
        repeat_count: rows that an earlier one equals, estimated in very large files.
    """

    def __init__(self, findings: Ledger) -> None:
        self.held_out = Fingerprints()
        self.repeat_count = 0
        self._findings, self._seen = findings, Fingerprints()
        self._good_count = self._leak_count = 0
        self._repeat_lines: list[int] = []
        self._leak_lines: list[int] = []
        self._turns, self._characters = Histogram(), defaultdict[str, Histogram](Histogram)
        self._texts: list[tuple[int, str]] = []
        self._text_size = 0
        self._lines: list[int] = []
        self._prints: list[int] = []
        self._lengths: defaultdict[str, list[int]] = defaultdict(list)
        self._turn_counts: list[int] = []

    def add(self, line: int, example: Example) -> None:
        """Count a row that the exact parser read."""
        self._lines.append(line)
        self._prints.append(fingerprint_of(example))
        if example.messages:
            self._turn_counts.append(len(example.messages))
        for message in example.messages:
            self._lengths[message.role].append(len(message.content or ""))
        if example.text:
            self._lengths["text"].append(sum(len(text) for text, _ in example.text))
        self._texts.append((line, text_of(example)))
        self._text_size += len(self._texts[-1][1])
        if self._text_size > _MAX_HELD_CHARACTERS:
            self.flush()

    def add_clean(self, sifted: Sifted, first_line: int) -> None:
        """Count rows that passed the sieve; positions count from `first_line`."""
        self._lines += [first_line + position for position in sifted.clean]
        self._prints += sifted.fingerprints
        for roles, sizes in sifted.sizes.items():
            self._turn_counts += [len(roles)] * (len(sizes) // len(roles))
            for index, role in enumerate(roles):
                self._lengths[role] += sizes[index :: len(roles)]

    def flush(self) -> None:
        """Settle what was added, so that nothing piles up."""
        repeated, leaked = self._seen.find_repeated(self._prints), self.held_out.find_known(self._prints)
        self.repeat_count += len(repeated) * self._seen.scale
        self._leak_count += len(leaked) * self.held_out.scale
        for positions, first_lines in ((repeated, self._repeat_lines), (leaked, self._leak_lines)):
            missing = MAX_SHOWN_LINES - len(first_lines)
            if positions and missing:
                first_lines.extend(sorted(self._lines[position] for position in positions)[:missing])
        self._tell_signs()
        self._good_count += len(self._prints)
        self._turns.add_all(self._turn_counts)
        for role, lengths in self._lengths.items():
            self._characters[role].add_all(lengths)
        self._lines, self._prints, self._turn_counts = [], [], []
        self._lengths.clear()

    def _tell_signs(self) -> None:
        for sign in find_signs([text for _, text in self._texts]) if self._texts else ():
            lines = [self._texts[position][0] for position in sign.positions]
            message = Issue(sign.code, _SIGNS[sign.code].format(sign.shown), line=lines[0]).message
            self._findings.add_warnings(sign.code, message, lines)
        self._texts, self._text_size = [], 0

    def tell(self) -> None:
        """Warn of repeats and leaks."""
        self.flush()
        if self.repeat_count:
            about = "about " if self._seen.scale > 1 else ""
            share = self.repeat_count / self._good_count
            text = f"{about}{self.repeat_count} rows ({share:.0%}) are the same as an earlier row"
            lines = tuple(self._repeat_lines)
            self._findings.set_warning("dataset.duplicates", self.repeat_count, text.capitalize(), lines)
        if self._leak_count:
            about = "About " if self.held_out.scale > 1 else ""
            count = self._leak_count
            text = f"{about}{count} rows are in the validation file too, whose loss will look too good"
            self._findings.set_warning(LEAKAGE, count, text, tuple(self._leak_lines))

    def statistics(self) -> RowStatistics:
        """Sizes of all rows so far."""
        spreads = {role: histogram.distribution() for role, histogram in sorted(self._characters.items())}
        return RowStatistics(
            messages=self._turns.distribution(),
            characters={role: spread for role, spread in spreads.items() if spread is not None},
        )
