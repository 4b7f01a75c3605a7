"""The channel between a child and its supervisor: whole lines, finite numbers, unknown things skipped."""

from pathlib import Path

from luthier import events


def _write(path: Path, *written: events.Event) -> None:
    writer = events.EventWriter(path, clock=lambda: 12.5)
    for event in written:
        writer.write(event)
    writer.close()


def test_what_is_written_is_read_with_its_offset(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    _write(path, events.PhaseChanged(phase="training"), events.CheckpointSaved(step=2, path="a"))
    read = list(events.read_events(path, 0))
    assert [event.at for event, _ in read] == [12.5, 12.5]
    assert list(events.read_events(path, read[0][1])) == read[1:]


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"type":"phase_changed","phase":"tra')
    assert list(events.read_events(path, 0)) == []


def test_lines_that_a_reader_does_not_know_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"type":"from_the_future"}\nnot json\n{"type":"phase_changed","phase":"x","new":1}\n')
    assert [event.type for event, _ in events.read_events(path, 0)] == ["phase_changed"]


def test_numbers_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    _write(
        path,
        events.StepLogged(step=1, total_steps=2, epoch=0.5, train_loss=float("nan"), grad_norm=float("inf")),
    )
    (event, _), *_ = events.read_events(path, 0)
    assert isinstance(event, events.StepLogged)
    assert (event.train_loss, event.grad_norm) == (None, None)


def test_a_missing_file_has_no_events(tmp_path: Path) -> None:
    assert list(events.read_events(tmp_path / "none", 0)) == []
