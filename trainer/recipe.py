"""One training run, told straight: spec, data, model, plan, steps, artifacts.

`train` is the whole of it. What it reports goes through the `EventWriter`, what it leaves goes into the run
folder; it knows no signal and no exit code, those are `__main__`'s.
"""

from collections.abc import Callable
from pathlib import Path

from transformers import set_seed

from luthier.errors import ExitCode, JobFailure
from luthier.events import EventWriter, PlanChosen, RunEnded, RunStarted
from luthier.spec import TrainSpec
from luthier.status import Phase
from trainer import checkpoints, methods, placement, report, versions
from trainer.checkpoints import Checkpoint
from trainer.data.batches import TrainingData, open_data
from trainer.engines import Engine, choose
from trainer.engines.trl import TrlEngine
from trainer.failures import told_as_failures
from trainer.journal import Journal
from trainer.loop import Loop
from trainer.model import load_base, load_tokenizer
from trainer.placement import Placement

_ENGINES = {"trl": TrlEngine}


def train(
    spec: TrainSpec, run_folder: Path, events: EventWriter, should_stop: Callable[[], bool]
) -> RunEnded:
    """Run a spec to its end, or to a checkpoint when asked to stop.

    Args:
        run_folder: local, writable; gets `checkpoints/` and `artifacts/`.
        should_stop: asked often and answered at the next boundary of a step.
    Returns:
        The event that ends the run, `done` or `stopped`, not yet written.
    Raises:
        JobFailure: the run cannot go on.
    """
    settings = spec.hyperparameters
    with told_as_failures(settings):
        checkpoint = checkpoints.open_checkpoint(spec)
        place = placement.choose(spec.device, settings.precision)
        first_step = checkpoint.step if checkpoint else 0
        events.write(
            RunStarted(
                resumed_from_step=first_step, device=place.device.type, versions=versions.library_versions()
            )
        )
        warning = placement.precision_warning(place, settings.precision)
        if warning:
            events.write(warning)
        data = open_data(spec, run_folder / "scratch")
        journal = Journal(events, settings, data.order, place)
        journal.enter(Phase.LOADING_MODEL)
        engine, plan = _prepare(spec, data, place, run_folder, checkpoint)
        if checkpoint:
            checkpoints.restore(checkpoint, engine, journal)
        events.write(plan)

        saved = checkpoints.Checkpoints(
            run_folder=run_folder,
            spec=spec,
            engine=engine,
            journal=journal,
            events=events,
            resumed=checkpoint,
        )
        loop = Loop(
            engine=engine,
            data=data,
            settings=settings,
            journal=journal,
            checkpoints=saved,
            should_stop=should_stop,
        )
        step, is_finished = loop.run(first_step)
        if not is_finished:
            return RunEnded(outcome="stopped", step=step, trained_token_count=journal.trained_token_count)
        journal.enter(Phase.SAVING)
        if settings.early_stopping:
            saved.restore_best()
        report.publish_artifacts(run_folder, spec, engine, journal)
        return RunEnded(
            outcome="done",
            step=step,
            trained_token_count=journal.trained_token_count,
            result=report.summary(journal),
        )


def _prepare(
    spec: TrainSpec, data: TrainingData, place: Placement, run_folder: Path, checkpoint: Checkpoint | None
) -> tuple[Engine, PlanChosen]:
    """Load the model, put an engine around it and say how the run will be done."""
    settings = spec.hyperparameters
    set_seed(settings.seed)
    base = load_base(spec.model, settings, place)
    _check_vocabulary(data, int(base.get_input_embeddings().num_embeddings), spec)
    model = methods.make_trainable(base, spec, checkpoint.folder if checkpoint else None)
    trainable_count, parameter_count = methods.count_parameters(model)
    recompute = placement.wants_checkpointing(settings.gradient_checkpointing, place, parameter_count)
    choice = choose(settings)
    engine = _ENGINES[choice.name](
        model, load_tokenizer(spec.model), settings, place, run_folder / "scratch", recompute=recompute
    )
    # From here on dropout draws; loading and assembling have drawn by amounts that are theirs.
    set_seed(settings.seed)
    plan = PlanChosen(
        engine=engine.name,
        precision=place.precision,
        total_steps=settings.max_steps,
        trainable_parameter_count=trainable_count,
        parameter_count=parameter_count,
        train_row_count=len(data.order.row_numbers),
        eval_row_count=len(data.validation_numbers),
        gradient_checkpointing=recompute,
        summary=(
            f"{settings.max_steps} steps of {settings.batch_size} x {settings.gradient_accumulation} "
            f"examples, {methods.describe(settings)}, {place.precision} on {place.device.type}, "
            f"{trainable_count:,} of {parameter_count:,} parameters trained; engine {choice.name} "
            f"({choice.reason})"
        ),
    )
    return engine, plan


def _check_vocabulary(data: TrainingData, vocabulary_size: int, spec: TrainSpec) -> None:
    """An id beyond the embedding would stop a GPU for good instead of raising."""
    if data.max_token_id >= vocabulary_size:
        raise JobFailure(
            f"The prepared data has token id {data.max_token_id} and {spec.model.id} knows {vocabulary_size} "
            "tokens: it was prepared for another model. Retry the job so that it is prepared again",
            "invalid_training_file",
            ExitCode.BAD_DATA,
            "training_file",
        )
