"""One training run, told straight: spec, data, model, plan, steps, artifacts.

`train` is the whole of it. What it reports goes through the `EventWriter`, what it leaves goes into the run
folder; it knows no signal and no exit code, those are `__main__`'s.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import set_seed

from luthier.errors import ExitCode, JobFailure
from luthier.events import EventWriter, PlanChosen, RunEnded, RunStarted
from luthier.planning import MemoryEstimate, with_max_steps
from luthier.spec import TrainSpec
from luthier.status import Phase
from trainer import checkpoints, methods, placement, report, versions
from trainer.checkpoints import Checkpoint
from trainer.data.batches import TrainingData, open_data
from trainer.data.order import StepOrder
from trainer.engines import Engine, choose
from trainer.engines.trl import TrlEngine
from trainer.failures import told_as_failures
from trainer.fit import Fit
from trainer.generation import Generator, choose_prompts
from trainer.journal import Journal
from trainer.loop import Loop
from trainer.model import load_base, load_tokenizer
from trainer.movement import Movement
from trainer.placement import Placement
from trainer.plan import plan_memory
from trainer.results import result_of
from trainer.watch import Watch

_ENGINES = {"trl": TrlEngine}


def train(
    spec: TrainSpec,
    run_folder: Path,
    events: EventWriter,
    should_stop: Callable[[], bool],
    *,
    probes: bool | None = None,
) -> RunEnded:
    """Run a spec to its end, or to a checkpoint when asked to stop.

    Args:
        run_folder: local, writable; gets `checkpoints/` and `artifacts/`.
        should_stop: asked often, and acted on at the next boundary of a step, between two parts of loading
            or within an evaluation; no more once the steps are done.
        probes: whether the heaviest micro-batch is tried before the first step; None means on a GPU.
    Returns:
        The event that ends the run, `done` or `stopped`, not yet written.
    Raises:
        JobFailure: the run cannot go on.
    """
    with told_as_failures(spec.hyperparameters):
        if should_stop():
            return _stopped_before_training(None)
        checkpoint = checkpoints.open_checkpoint(spec)
        place = placement.choose(spec.device, spec.hyperparameters.precision)
        first_step = checkpoint.step if checkpoint else 0
        _tell_start(events, place, first_step)
        data = open_data(spec, run_folder / "scratch")
        if should_stop():
            return _stopped_before_training(checkpoint)
        spec = with_exact_steps(spec, data.order)
        settings = spec.hyperparameters
        journal = Journal(events, settings, data.order, place)
        journal.enter(Phase.LOADING_MODEL)
        engine, plan = _prepare(spec, data, place, run_folder, checkpoint)
        movement = _resume(spec, checkpoint, engine, journal)
        events.write(plan)
        if should_stop():
            return _stopped_before_training(checkpoint)

        if warning := placement.precision_warning(place, settings.precision):
            journal.warn(warning.code, warning.message, **warning.data)
        watch = Watch(settings, data, journal, movement)
        watch.before_training()
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
            fit=Fit(engine, data, settings, journal, place),
            settings=settings,
            journal=journal,
            checkpoints=saved,
            watch=watch,
            movement=movement,
            generator=_generator(spec, engine, data, place, journal),
            should_stop=should_stop,
        )
        if place.is_cuda if probes is None else probes:
            loop.probe(first_step)
        step, is_finished = loop.run(first_step)
        if not is_finished:
            return RunEnded(outcome="stopped", step=step, trained_token_count=journal.trained_token_count)
        journal.enter(Phase.SAVING)
        published = (saved.restore_best() if settings.early_stopping else None) or step
        watch.after_training()
        result = result_of(journal, movement, settings.max_steps, published_step=published)
        made = report.Made(spec, engine, place, data, plan.parameter_count)
        report.publish_artifacts(run_folder, made, journal, result)
        return RunEnded(
            outcome="done", step=step, trained_token_count=journal.trained_token_count, result=result
        )


def with_exact_steps(spec: TrainSpec, order: StepOrder) -> TrainSpec:
    """A spec whose `max_steps`, where it was estimated, are those of its epochs."""
    settings = spec.hyperparameters
    if not settings.are_steps_estimated:
        return spec
    steps = order.steps_of_epochs(settings.epochs or settings.n_epochs)
    exact = with_max_steps(settings, steps, order.steps_of_epochs(1))
    return spec.model_copy(update={"hyperparameters": exact})


def _stopped_before_training(checkpoint: Checkpoint | None) -> RunEnded:
    """The end of a run that was asked to stop while it loaded; there is nothing new to save."""
    step = checkpoint.step if checkpoint else 0
    trained = checkpoint.state["journal"]["trained_token_count"] if checkpoint else 0
    return RunEnded(outcome="stopped", step=step, trained_token_count=trained)


def _tell_start(events: EventWriter, place: Placement, first_step: int) -> None:
    events.write(
        RunStarted(
            resumed_from_step=first_step, device=place.device.type, versions=versions.library_versions()
        )
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
    planned = _plan_memory(spec, data, place, base.config.to_dict())
    recompute = (
        planned.gradient_checkpointing
        if planned
        else placement.wants_checkpointing(settings.gradient_checkpointing, place, parameter_count)
    )
    choice = choose(settings)
    engine = _ENGINES[choice.name](
        model, load_tokenizer(spec.model), settings, place, run_folder / "scratch", recompute=recompute
    )
    # From here on dropout draws; loading and assembling have drawn by amounts that are theirs.
    set_seed(settings.seed)
    rows = "packed rows" if settings.packing else "examples"
    plan = PlanChosen(
        engine=engine.name,
        engine_reason=choice.reason,
        precision=place.precision,
        total_steps=settings.max_steps,
        trainable_parameter_count=trainable_count,
        parameter_count=parameter_count,
        train_row_count=data.order.example_count,
        eval_row_count=len(data.validation_numbers),
        gradient_checkpointing=recompute,
        memory_bytes=planned.needed_bytes if planned else None,
        packing_efficiency=data.packing_efficiency,
        summary=(
            f"{settings.max_steps} steps of {settings.batch_size} x {settings.gradient_accumulation} "
            f"{rows}, {methods.describe(settings)}, {place.precision} on {place.device.type}, "
            f"{trainable_count:,} of {parameter_count:,} parameters trained; engine {choice.name} "
            f"({choice.reason})"
        ),
    )
    return engine, plan


def _plan_memory(
    spec: TrainSpec, data: TrainingData, place: Placement, config: dict[str, Any]
) -> MemoryEstimate | None:
    lengths, targets = data.train.lengths, data.train.target_counts
    return plan_memory(
        config,
        spec.hyperparameters,
        place,
        longest=int(lengths.max()),
        row_count=len(data.order.epoch_rows(0)),
        trained_share=float(targets.sum() / lengths.sum()),
    )


def _resume(spec: TrainSpec, checkpoint: Checkpoint | None, engine: Engine, journal: Journal) -> Movement:
    """Put back what a checkpoint holds, and measure from here how far the weights move from step 0.

    The weights of step 0 follow from the seed, except where they came from another adapter or from the base's
    own: then it is measured from the checkpoint on, on top of what that had measured.
    """
    movement = Movement(engine.model)
    if checkpoint is None:
        return movement
    checkpoints.restore(checkpoint, engine, journal)
    if spec.adapter_from is None and spec.hyperparameters.init_lora_weights == "default":
        return movement
    return Movement(engine.model, earlier_norm=journal.weight_change_norm)


def _generator(
    spec: TrainSpec, engine: Engine, data: TrainingData, place: Placement, journal: Journal
) -> Generator | None:
    wanted = spec.hyperparameters.samples
    if wanted.count == 0:
        return None
    if not len(data.validation_numbers):
        journal.warn(
            "samples_from_training",
            "There is no validation split, so the sample answers are to training rows, which the model has "
            "seen: set dataset.validation_split (in LLaMA-Factory's form, val_size) to see what it makes of "
            "others",
        )
    tokenizer = load_tokenizer(spec.model)
    prompts = choose_prompts(data, tokenizer, wanted.count)
    return Generator(engine, tokenizer, place, prompts, wanted.max_new_tokens)


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
