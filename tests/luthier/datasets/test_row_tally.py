"""Counts in constant memory: exact while they can be, close when they cannot."""

import random

import pytest

from luthier.datasets.distributions import Histogram
from luthier.datasets.fingerprints import Fingerprints, fingerprint, fingerprint_of
from luthier.datasets.reading import read_examples
from luthier.datasets.report import Ledger
from luthier.datasets.row_tally import LEAKAGE, RowTally


def test_repeats_are_found_within_a_call_and_across_calls():
    seen = Fingerprints()

    assert seen.find_repeated([1, 2, 1]) == [2]
    assert seen.find_repeated([3, 2, 3]) == [1, 2]
    assert seen.find_known([9, 3]) == [1]
    assert seen.scale == 1


def test_beyond_its_bound_a_sample_is_remembered_and_counts_scale():
    chance = random.Random(7)
    rows = [chance.getrandbits(62) for _ in range(50_000)]
    seen = Fingerprints(max_remembered=4096)

    repeats = sum(len(seen.find_repeated([row])) * seen.scale for row in [*rows, *rows])

    assert seen.scale == 16
    # 3,125 of the rows are expected in the sample; three deviations of such a count are some 5 %.
    assert repeats == pytest.approx(50_000, rel=0.06)


def test_leaks_into_a_very_large_validation_file_are_estimated_and_say_so(write_rows):
    rows = list(read_examples(write_rows(*({"prompt": str(n), "completion": "a"} for n in range(40)))))
    ledger = Ledger()
    tally = RowTally(ledger)
    tally.held_out = Fingerprints(max_remembered=8)

    tally.held_out.find_repeated([fingerprint_of(example) for _, example in rows])
    for line, example in rows:
        tally.add(line, example)
    tally.tell()

    [leak] = ledger.warnings
    assert (leak.code, leak.count % tally.held_out.scale) == (LEAKAGE, 0)
    assert leak.message.startswith(f"About {leak.count} rows are in the validation file too")


def test_equal_conversations_have_one_fingerprint_in_every_format(write_rows):
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"content": "b", "role": "assistant"}]},
        {"prompt": "a", "completion": "b"},
        {"instruction": "a", "input": "", "output": "b"},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    ]
    prints = {fingerprint_of(example) for row in rows for _, example in read_examples(write_rows(row))}

    assert prints == {fingerprint(("user", "assistant"), ["a", "b"])}


def test_weights_and_tools_make_a_difference(write_rows):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [
        {"messages": turns},
        {"messages": [turns[0], turns[1] | {"weight": 0}]},
        {"messages": turns, "tools": [{"name": "f"}]},
    ]

    assert len({fingerprint_of(example) for _, example in read_examples(write_rows(*rows))}) == 3


def test_a_histogram_is_exact_for_small_numbers_and_close_for_large_ones():
    small, large = Histogram(), Histogram()
    small.add_all(range(1, 41))
    large.add_all(range(10_000))
    large.add_all(range(10_000, 100_001))

    spread = small.distribution()
    assert (spread.p50, spread.p90, spread.p99) == (20, 36, 40)
    spread = large.distribution()
    assert (spread.count, spread.minimum, spread.mean, spread.maximum) == (100_001, 0, 50_000.0, 100_000)
    assert [spread.p50, spread.p90, spread.p99] == pytest.approx([50_000, 90_000, 99_000], rel=1 / 32)


def test_nothing_has_no_distribution():
    assert Histogram().distribution() is None
