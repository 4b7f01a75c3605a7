"""What a run is doing, shown while it does it: a bar on a terminal, a line for each change elsewhere.

The same display serves a job on a server (`of_job`) and a run on this machine (`RunProgress.see`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

from rich.console import RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.text import Text

from luthier import events
from luthier.cli.plot import sparkline
from luthier.cli.terminal import console, duration_of
from luthier.client import Job
from luthier.client.objects import FINAL_STATUSES

_WIDEST = 80


@dataclass(frozen=True)
class RunState:
    """What can be shown of a run at one moment; None is what is not known yet."""

    phase: str = "waiting"
    step: int = 0
    total_steps: int | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    tokens_per_second: float | None = None
    seconds_remaining: float | None = None

    def describe(self, *, is_short: bool = False) -> str:
        """The numbers that are known, in one line; a short one fits beside a bar in 80 columns."""
        parts = []
        if self.train_loss is not None:
            parts.append(f"loss {self.train_loss:.4f}")
        if self.eval_loss is not None:
            parts.append(f"{'val' if is_short else 'validation loss'} {self.eval_loss:.4f}")
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:.0f} {'tok/s' if is_short else 'tokens/s'}")
        if self.seconds_remaining is not None and self.step:
            parts.append(f"ETA {duration_of(self.seconds_remaining)}")
        return "  ".join(parts)


def state_of_job(job: Job, before: RunState) -> RunState:
    """What a job's snapshot shows; the validation loss comes with the events, not with the job."""
    progress = job.progress
    is_at_rest = job.is_final or job.status == "paused"
    phase = job.status if is_at_rest else job.phase or job.status
    if progress is None:
        return replace(before, phase=phase)
    return replace(
        before,
        phase=phase,
        step=progress.step or 0,
        total_steps=progress.total_steps,
        train_loss=progress.train_loss,
        tokens_per_second=progress.tokens_per_second,
        seconds_remaining=progress.seconds_remaining,
    )


def state_after(event: events.AnyEvent, before: RunState) -> RunState:
    """What a run on this machine shows after one of its events."""
    match event:
        case events.PhaseChanged():
            return replace(before, phase=event.phase)
        case events.PlanChosen():
            return replace(before, total_steps=event.total_steps)
        case events.EvalLogged():
            return replace(before, eval_loss=event.eval_loss)
        case events.StepLogged():
            return replace(
                before,
                step=event.step,
                total_steps=event.total_steps,
                train_loss=event.train_loss,
                tokens_per_second=event.tokens_per_second,
                seconds_remaining=event.seconds_remaining,
            )
        case _:
            return before


class _RunBar(Progress):
    """A bar with the course of the training loss below it."""

    losses: Sequence[float] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if len(self.losses) > 1:
            words = "loss  "
            yield Text(f"{words}{sparkline(self.losses, min(self.console.width, _WIDEST) - len(words))}")


class RunDisplay:
    """Shows states as they come; a context manager.

    Args:
        losses: of training, from before the first state.
    """

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self._console = console()
        self._shown = RunState()
        self._losses = list(losses)
        self._told_phases: set[str] = set()
        self._bar: _RunBar | None = None
        self._task = TaskID(0)

    def __enter__(self) -> "RunDisplay":
        if self._console.is_terminal:
            columns = ("{task.description}", BarColumn(bar_width=12), "{task.fields[numbers]}")
            self._bar = _RunBar(*columns, console=self._console)
            self._bar.losses = self._losses
            self._task = self._bar.add_task("waiting", total=None, numbers="")
            self._bar.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, state: RunState) -> None:
        """Bring the display up to a state."""
        before, self._shown = self._shown, state
        count = f"{state.step}/{state.total_steps}" if state.total_steps else ""
        if state.step != before.step and state.train_loss is not None:
            self._losses.append(state.train_loss)
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=state.phase.replace("_", " "),
                total=state.total_steps,
                completed=state.step,
                numbers=f"{count}  {state.describe(is_short=True)}",
            )
        else:
            self._print_change(before, state, count)

    def note(self, line: str) -> None:
        """A line above the bar."""
        self._console.print(line, markup=False)

    def evaluated(self, step: int | None, total_steps: int | None, loss: float) -> None:
        """Where there is no bar, a line for an evaluation; between two states there may be several."""
        if self._bar is None:
            self.note(f"step {step}/{total_steps}  {RunState(eval_loss=loss).describe()}")

    def _print_change(self, before: RunState, state: RunState, count: str) -> None:
        """Lines in the place of a bar: each phase once and each measured step; the end is told by others."""
        if state.phase not in self._told_phases | FINAL_STATUSES:
            self._told_phases.add(state.phase)
            self.note(state.phase.replace("_", " "))
        if state.step != before.step:
            self.note(f"step {count}  {replace(state, eval_loss=None).describe()}")


class TransferDisplay:
    """A bar for bytes on a terminal, and nothing elsewhere; call it with the bytes so far."""

    def __init__(self, name: str, total_bytes: int | None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(name, total=total_bytes)

    def __enter__(self) -> "TransferDisplay":
        if self._progress.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        # What was not started prints an empty line when it is stopped.
        if self._progress.live.is_started:
            self._progress.stop()

    def __call__(self, done_bytes: int, total_bytes: int | None = None) -> None:
        self._progress.update(self._task, completed=done_bytes, total=total_bytes)
