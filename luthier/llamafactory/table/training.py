"""Arguments of transformers' Seq2SeqTrainingArguments about steps, learning rate and precision."""

from luthier.llamafactory.table.rows import Group, all_idle, all_refused, honoured, idle, mapped, refused

_COMPILE = "chooses how the same numbers are computed; the engine chooses for itself"
_BETAS = "the optimizer's betas and epsilon are 0.9, 0.999 and 1e-8"

SCHEDULE = Group(
    "Steps, batches and learning rate",
    (
        honoured("per_device_train_batch_size", 8, "hyperparameters.batch_size"),
        honoured("gradient_accumulation_steps", 1, "qlora.gradient_accumulation"),
        honoured(
            "num_train_epochs",
            3.0,
            "hyperparameters.n_epochs",
            "qlora.epochs",
            note="a part of one counts, as in 1.5: its share of the steps, rounded up",
        ),
        honoured("max_steps", -1, "qlora.max_steps", note="above 0 it stands in the place of the epochs"),
        honoured("learning_rate", 5e-5, "qlora.learning_rate"),
        mapped(
            "lr_scheduler_type",
            "linear",
            "qlora.lr_scheduler",
            note="linear, cosine, constant, constant_with_warmup, cosine_with_restarts, cosine_with_min_lr",
        ),
        mapped(
            "lr_scheduler_kwargs",
            None,
            "qlora.lr_restarts",
            "qlora.min_lr_ratio",
            note="num_cycles of cosine_with_restarts; min_lr or min_lr_rate of cosine_with_min_lr",
        ),
        honoured("warmup_ratio", 0.0, "qlora.warmup_ratio", note="warmup_steps above 0 goes before it"),
        honoured("warmup_steps", 0, "qlora.warmup_steps", note="below 1 it is a ratio"),
        mapped(
            "optim",
            "adamw_torch",
            "qlora.optimizer",
            note="adamw_torch, adamw_torch_fused, adamw_8bit, adamw_bnb_8bit, paged_adamw_32bit, "
            "paged_adamw_8bit, adafactor",
        ),
        refused("adafactor", False, "write optim: adafactor"),
        refused("optim_args", None, _BETAS),
        refused("optim_target_modules", None, "belongs to GaLore and APOLLO, which are not there"),
        refused("adam_beta1", 0.9, _BETAS),
        refused("adam_beta2", 0.999, _BETAS),
        refused("adam_epsilon", 1e-8, _BETAS),
        honoured("weight_decay", 0.0, "qlora.weight_decay"),
        honoured("max_grad_norm", 1.0, "qlora.max_grad_norm"),
        refused("label_smoothing_factor", 0.0, "the loss is the cross entropy over the trained tokens"),
        honoured("neftune_noise_alpha", None, "qlora.neftune_alpha"),
        mapped(
            "auto_find_batch_size",
            False,
            "qlora.auto_fit",
            note="where memory runs out, one more try with half the micro-batch and twice the accumulation",
        ),
        honoured("seed", 42, "seed"),
        refused("data_seed", None, "the order of rows is drawn from seed"),
        refused(
            "full_determinism", False, "runs repeat bit for bit on the CPU, and on a GPU as far as it does"
        ),
        refused(
            "group_by_length", False, "the order of rows is drawn from the seed; packing saves the padding"
        ),
        refused("train_sampling_strategy", "random", "the order of rows is drawn from the seed"),
        refused("dataloader_drop_last", False, "the last rows of an epoch make a smaller step"),
        idle("average_tokens_across_devices", True, "the loss is averaged over the tokens of a step"),
    ),
)

PRECISION = Group(
    "Precision, memory and speed",
    (
        honoured("bf16", False, "qlora.precision"),
        honoured("fp16", False, "qlora.precision", note="without bf16 and fp16 the device's best is chosen"),
        *all_idle(
            "the precision of evaluation is that of training", bf16_full_eval=False, fp16_full_eval=False
        ),
        *all_idle(
            _COMPILE,
            tf32=None,
            torch_compile=False,
            torch_compile_backend=None,
            torch_compile_mode=None,
            torchdynamo=None,
            jit_mode_eval=False,
            use_liger_kernel=False,
            liger_kernel_config=None,
            fp16_backend="auto",
            fp16_opt_level="O1",
            half_precision_backend="auto",
            torch_empty_cache_steps=None,
            use_cache=False,
        ),
        honoured("gradient_checkpointing", None, "qlora.gradient_checkpointing"),
        honoured("activation_checkpointing", None, "qlora.gradient_checkpointing"),
        idle("gradient_checkpointing_kwargs", None, "changes no number"),
        idle("activation_checkpointing_kwargs", None, "changes no number"),
        *all_refused(
            "FP8 is not there: choose bf16",
            fp8=False,
            fp8_backend="auto",
            fp8_enable_fsdp_float8_all_gather=False,
        ),
        *all_refused(
            "the device is the worker's (LUTHIER_GPUS)",
            no_cuda=False,
            use_cpu=False,
            use_mps_device=False,
            use_ipex=False,
        ),
    ),
)
