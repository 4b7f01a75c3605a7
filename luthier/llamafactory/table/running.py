"""Arguments about what goes on beside training: logs, evaluation, checkpoints, processes, generation."""

from luthier.llamafactory.table.rows import (
    Argument,
    Group,
    all_idle,
    all_refused,
    honoured,
    idle,
    mapped,
    refused,
)

_ONE_GPU = "a run has one GPU, so there is nothing to distribute"
_LOADING = "the trainer reads its prepared rows by itself"
_HUB = "nothing is pushed to a hub: take the files from the job's artifacts"
_LOGGERS = "no exporter to a logging service is there yet: leave it out, or write none"
_PREDICTION = "predictions are not a part of a training job"
_STEPS = "a whole number of steps, or below 1 a share of the run, rounded up"

LOGGING = Group(
    "Logging",
    (
        mapped("logging_strategy", "steps", "qlora.logging_steps", note="steps, epoch or no"),
        honoured("logging_steps", 500, "qlora.logging_steps", note=_STEPS),
        idle("logging_first_step", False, "numbers are logged every logging_steps and at the end"),
        idle("logging_dir", None, "logs belong to the job"),
        idle("logging_nan_inf_filter", True, "a loss that is not finite ends the run, with advice"),
        refused("report_to", "none", _LOGGERS, [], False),
        mapped("run_name", None, "metadata", note="kept in the job's metadata"),
        *all_idle(
            "belongs to a logging service",
            project="huggingface",
            trackio_space_id=None,
            trackio_bucket_id=None,
            trackio_static_space_id=None,
        ),
        *all_idle(
            "what is shown is up to the one who looks",
            log_level="passive",
            log_level_replica="warning",
            log_on_each_node=True,
            disable_tqdm=None,
            debug="",
        ),
        *all_idle(
            "tokens are always counted", include_num_input_tokens_seen=False, include_tokens_per_second=False
        ),
        idle("skip_memory_metrics", True, "the peak of memory is always measured"),
    ),
)

EVALUATION = Group(
    "Evaluation",
    (
        mapped(
            "eval_strategy",
            "no",
            "qlora.eval_steps",
            note="steps or epoch; with no, validation rows are evaluated once before and once after training",
        ),
        mapped("evaluation_strategy", "no", "qlora.eval_steps", note="the older name of eval_strategy"),
        honoured(
            "eval_steps", None, "qlora.eval_steps", note=f"logging_steps where it is not given; {_STEPS}"
        ),
        idle("do_eval", False, "validation rows are always evaluated at the end"),
        idle("eval_on_start", False, "validation rows are always evaluated before the first step"),
        refused("eval_delay", 0, "evaluations begin with the run"),
        idle("per_device_eval_batch_size", 8, "evaluation takes the batches that fit"),
        idle("per_gpu_eval_batch_size", None, "evaluation takes the batches that fit"),
        *all_idle(
            "evaluation measures loss and accuracy, and keeps nothing else",
            eval_accumulation_steps=None,
            eval_do_concat_batches=True,
            eval_use_gather_object=False,
            batch_eval_metrics=False,
            prediction_loss_only=False,
            include_for_metrics=None,
            include_inputs_for_metrics=False,
        ),
        mapped(
            "load_best_model_at_end",
            False,
            "qlora.early_stopping",
            note="with an eval_strategy, the weights with the lowest validation loss are published (early "
            "stopping with a patience that does not end); without one, those of the last step",
        ),
        refused("metric_for_best_model", "eval_loss", "the lowest validation loss is the best", "loss"),
        refused("greater_is_better", None, "the lowest validation loss is the best", False),
    ),
)

SAVING = Group(
    "Output and checkpoints",
    (
        mapped(
            "output_dir",
            None,
            "suffix",
            "metadata",
            note="kept in the metadata and, in letters that a name may have, in the tuned model's name; for "
            "`luthier train` also the run folder",
        ),
        idle("overwrite_output_dir", False, "a job never writes over another"),
        mapped("save_strategy", "steps", "qlora.save_steps", note="steps, epoch, best or no"),
        honoured("save_steps", 500, "qlora.save_steps", note=_STEPS),
        mapped(
            "save_total_limit",
            None,
            "qlora.save_total_limit",
            note="3 where it is not given; that system keeps all",
        ),
        *all_idle(
            "checkpoints are always whole, in safetensors, and can be resumed from",
            save_only_model=False,
            save_safetensors=True,
            save_on_each_node=False,
            enable_jit_checkpoint=False,
            restore_callback_states_from_checkpoint=False,
        ),
        refused(
            "resume_from_checkpoint",
            None,
            "a server resumes a job by itself; on this machine give --resume to `luthier train`",
            False,
        ),
        refused("ignore_data_skip", False, "a resumed run goes on at the very row where it stopped"),
    ),
)

WHAT = Group(
    "What to do",
    (
        refused("do_train", True, "a job trains"),
        refused("do_predict", False, f"{_PREDICTION}: evaluations will be jobs of their own"),
        refused("predict_with_generate", False, f"{_PREDICTION}: evaluations will be jobs of their own"),
        refused("sortish_sampler", False, "the order of rows is drawn from the seed"),
        *all_idle(_PREDICTION, generation_max_length=None, generation_num_beams=None, generation_config=None),
    ),
)

DISTRIBUTION = Group(
    "Several processes, loading and hub",
    (
        *all_refused(
            _ONE_GPU,
            deepspeed=None,
            fsdp_config=None,
            fsdp_min_num_params=0,
            fsdp_transformer_layer_cls_to_wrap=None,
            accelerator_config=None,
            parallelism_config=None,
            ray_num_workers=1,
            ray_init_kwargs=None,
            tpu_num_cores=None,
            tpu_metrics_debug=False,
            mp_parameters="",
        ),
        refused("fsdp", None, _ONE_GPU, "", [], False),
        *all_idle(
            _ONE_GPU,
            ddp_backend=None,
            ddp_timeout=1800,
            ddp_find_unused_parameters=None,
            ddp_bucket_cap_mb=None,
            ddp_broadcast_buffers=None,
            ddp_static_graph=None,
            local_rank=-1,
            master_addr=None,
            master_port=None,
            ray_scope="last",
        ),
        *all_idle(
            _LOADING,
            dataloader_num_workers=0,
            dataloader_pin_memory=True,
            dataloader_persistent_workers=False,
            dataloader_prefetch_factor=None,
            dataloader_multiprocessing_context=None,
            dataloader_in_order=True,
            remove_unused_columns=True,
            length_column_name="length",
            past_index=-1,
        ),
        refused("label_names", None, "the labels are those that the rows and the mask give"),
        refused("per_gpu_train_batch_size", None, "write per_device_train_batch_size"),
        idle("use_legacy_prediction_loop", False, "evaluation is the trainer's own"),
        *all_refused(
            _HUB,
            push_to_hub=False,
            push_to_hub_model_id=None,
            push_to_hub_organization=None,
            push_to_hub_token=None,
            hub_model_id=None,
            hub_token=None,
        ),
        *all_idle(
            "nothing is pushed to a hub",
            hub_strategy="every_save",
            hub_private_repo=None,
            hub_always_push=False,
            hub_revision=None,
        ),
    ),
)

PROFILING = Group(
    "Profiling",
    (
        refused("enable_torch_profiler", False, "runs are not profiled"),
        *all_idle(
            "runs are not profiled",
            profiler_output_dir=None,
            profiler_wait_steps=1,
            profiler_warmup_steps=1,
            profiler_active_steps=1,
            profiler_repeat=1,
            profiler_record_shapes=True,
            profiler_profile_memory=True,
            profiler_with_stack=True,
        ),
        refused("profile_modules", None, "runs are not profiled"),
    ),
)

GENERATION = Group(
    "Generation",
    all_idle(
        "is about answering, and training takes no notice of it",
        do_sample=True,
        temperature=0.95,
        top_p=0.7,
        top_k=50,
        num_beams=1,
        max_length=1024,
        max_new_tokens=1024,
        repetition_penalty=1.0,
        length_penalty=1.0,
        skip_special_tokens=True,
    ),
)

_EVAL_COMMAND: tuple[Argument, ...] = all_refused(
    "belongs to the command `eval`, not to `train`",
    task=None,
    task_dir="evaluation",
    batch_size=4,
    lang="en",
    n_shot=5,
    save_dir=None,
    download_mode="reuse_dataset_if_exists",
)
EVAL_COMMAND = Group("The command `eval`", _EVAL_COMMAND)
