"""Pictures of the losses, raw and smoothed, as LLaMA-Factory draws them.

Entered by `draw_losses`. The smoothing is that system's: an exponential mean whose weight grows with the
number of points.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLOUR = "#1f77b4"


def draw_losses(path: Path, points: Sequence[tuple[int, float]], title: str) -> None:
    """Write a PNG of losses by step; nothing where there are no points."""
    if not points:
        return
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, losses = zip(*points, strict=True)
    axes.plot(steps, losses, color=_COLOUR, alpha=0.4, label="original")
    axes.plot(steps, smooth(losses), color=_COLOUR, label="smoothed")
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.legend()
    figure.savefig(path, dpi=100)


def smooth(values: Sequence[float]) -> list[float]:
    """An exponential moving average that smooths more the more values there are.

    The weight of the past is 1.8 * (sigmoid(0.05 * n) - 0.5): 0.22 for 10 values, 0.89 for 100. It begins
    with the first value, as TensorBoard's did.
    """
    weight = 1.8 * (1 / (1 + math.exp(-0.05 * len(values))) - 0.5)
    smoothed = [values[0]]
    for value in values[1:]:
        smoothed.append(weight * smoothed[-1] + (1 - weight) * value)
    return smoothed
