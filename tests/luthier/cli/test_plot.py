"""Curves in a terminal: their shape, their axes, and what cannot be drawn."""

import math

from luthier.cli.plot import plot, sparkline


def test_a_sparkline_goes_from_the_greatest_to_the_least() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1], 20) == "█▇▆▅▄▃▂▁"


def test_a_long_one_is_made_of_means() -> None:
    assert sparkline([0, 0, 4, 4, 8, 8], 3) == "▁▅█"


def test_a_level_or_an_empty_one_is_no_trouble() -> None:
    assert sparkline([2, 2, math.nan], 5) == "▁▁"
    assert sparkline([math.nan], 5) == ""


def test_a_plot_has_both_axes_and_fits() -> None:
    line = [(step, 4 - step / 25) for step in range(1, 101)]
    rows = plot(line, [(50, 2.0)], width=40, height=10)
    assert len(rows) == 10
    assert max(map(len, rows)) <= 40
    assert (rows[0].split()[0], rows[7].split()[0]) == ("3.96", "0")
    assert rows[-1].split() == ["1", "100"]
    # It falls: what is drawn in a row begins further to the right than in the row above.
    starts = [next(i for i, c in enumerate(row) if "\u2800" < c <= "\u28ff") for row in rows[:8]]
    assert starts == sorted(starts)
    assert [row.count("●") for row in rows].count(1) == 1


def test_one_point_is_drawn_and_none_is_nothing() -> None:
    assert any("⠁" in row or "⡀" in row for row in plot([(1, 1.0)], width=20, height=5))
    assert plot([(1, math.inf)], width=20, height=5) == []
