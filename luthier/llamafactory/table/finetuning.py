"""Arguments about the method: what is trained, by which adapters, and the many methods that are not here."""

from luthier.llamafactory.table.rows import Group, all_refused, honoured, idle, mapped, refused

_SFT_ONLY = "belongs to a stage other than sft"
_SWANLAB = "SwanLab is not connected: read the job's metrics and events"
_MEGATRON = "training runs on one GPU by PyTorch, without Megatron"
_LOSS = "the loss is the cross entropy over the trained tokens"
_FREEZE = "freeze trains whole layers, the last ones; which parts of them cannot be chosen"

METHOD = Group(
    "Method",
    (
        refused(
            "stage", "sft", "supervised fine-tuning is the stage that there is; for `pt`, give rows of `text`"
        ),
        mapped(
            "finetuning_type",
            "lora",
            "qlora.method",
            note="`lora` (with quantization_bit: `qlora`), `full`, or `freeze` as `full` with "
            "qlora.trainable_layers; oft is refused",
        ),
        mapped("pure_bf16", False, "qlora.precision", note="`bf16`; the optimizer keeps its state in fp32"),
        refused("use_llama_pro", False, "expanded blocks are not there"),
        refused(
            "use_adam_mini", False, "choose optim: adamw_torch, adamw_8bit, paged_adamw_8bit or adafactor"
        ),
        refused("use_mca", False, _MEGATRON),
        refused("use_megatron_bridge", False, _MEGATRON),
        refused("use_hyper_parallel", False, _MEGATRON),
        refused("hyper_parallel_args", None, _MEGATRON),
        refused("hyper_parallel_cp_size", 1, _MEGATRON),
        refused("use_muon", False, "choose optim: adamw_torch, adamw_8bit, paged_adamw_8bit or adafactor"),
        *all_refused(
            _LOSS,
            use_dft_loss=False,
            use_asft_loss=False,
            asft_alpha=0.1,
            use_eaft_loss=False,
            eaft_alpha=1.0,
        ),
        *all_refused(
            "models are trained on text alone",
            freeze_vision_tower=True,
            freeze_multi_modal_projector=True,
            freeze_language_model=False,
        ),
        idle("compute_accuracy", False, "the accuracy by token is always measured"),
        refused("disable_shuffling", False, "the order of rows is drawn from the seed"),
        mapped(
            "early_stopping_steps",
            None,
            "qlora.early_stopping",
            note="evaluations without a better validation loss, after which the run ends",
        ),
        idle("plot_loss", False, "the losses are always drawn"),
        idle("include_effective_tokens_per_second", False, "the speed in tokens is always measured"),
    ),
)

LORA = Group(
    "LoRA",
    (
        refused("additional_target", None, "modules beside the adapters stay frozen"),
        honoured("lora_alpha", None, "qlora.alpha", note="twice the rank where it is not given"),
        honoured("lora_dropout", 0.0, "qlora.dropout"),
        honoured("lora_rank", 8, "qlora.r"),
        mapped(
            "lora_target", "all", "qlora.target_modules", note="`all` is `all-linear`; or names with commas"
        ),
        honoured("loraplus_lr_ratio", None, "qlora.loraplus_lr_ratio"),
        idle("loraplus_lr_embedding", 1e-6, "embeddings are not trained"),
        honoured("use_rslora", False, "qlora.use_rslora"),
        honoured("use_dora", False, "qlora.use_dora"),
        mapped(
            "pissa_init", False, "qlora.init_lora_weights", note="`pissa`, on a base that is not quantised"
        ),
        idle("pissa_iter", 16, "the decomposition is as exact as the library makes it"),
        refused("pissa_convert", False, "the adapter is left as it was trained"),
        refused(
            "create_new_adapter", False, "an adapter that is trained on from is changed, not stacked upon"
        ),
    ),
)

OFT = Group(
    "OFT",
    all_refused(
        "orthogonal fine-tuning is not there: use finetuning_type lora",
        module_dropout=0.0,
        oft_rank=0,
        oft_block_size=32,
        oft_target="all",
    ),
)

FREEZE = Group(
    "Freeze",
    (
        mapped(
            "freeze_trainable_layers",
            2,
            "qlora.trainable_layers",
            note="so many of the last layers, with finetuning_type freeze; a negative number (the first) is "
            "refused",
        ),
        refused("freeze_trainable_modules", "all", _FREEZE),
        refused("freeze_extra_modules", None, _FREEZE),
    ),
)

PREFERENCES = Group(
    "Preferences and rewards",
    all_refused(
        _SFT_ONLY,
        pref_beta=0.1,
        pref_ftx=0.0,
        pref_bco_weight=0.0,
        pref_loss="sigmoid",
        dpo_label_smoothing=0.0,
        kto_chosen_weight=1.0,
        kto_rejected_weight=1.0,
        simpo_gamma=0.5,
        ppo_buffer_size=1,
        ppo_epochs=4,
        ppo_score_norm=False,
        ppo_target=6.0,
        ppo_whiten_rewards=False,
        ref_model=None,
        ref_model_adapters=None,
        ref_model_quantization_bit=None,
        reward_model=None,
        reward_model_adapters=None,
        reward_model_quantization_bit=None,
        reward_model_type="lora",
        ld_alpha=None,
    ),
)

LOW_MEMORY_OPTIMIZERS = Group(
    "GaLore, APOLLO and BAdam",
    (
        *all_refused(
            "GaLore is not there: method qlora needs less memory still",
            use_galore=False,
            galore_target="all",
            galore_rank=16,
            galore_update_interval=200,
            galore_scale=2.0,
            galore_proj_type="std",
            galore_layerwise=False,
        ),
        *all_refused(
            "APOLLO is not there: method qlora needs less memory still",
            use_apollo=False,
            apollo_target="all",
            apollo_rank=16,
            apollo_update_interval=200,
            apollo_scale=32.0,
            apollo_proj="random",
            apollo_proj_type="std",
            apollo_scale_type="channel",
            apollo_layerwise=False,
            apollo_scale_front=False,
        ),
        *all_refused(
            "BAdam is not there: method qlora needs less memory still",
            use_badam=False,
            badam_mode="layer",
            badam_start_block=None,
            badam_switch_mode="ascending",
            badam_switch_interval=50,
            badam_update_ratio=0.05,
            badam_mask_mode="adjacent",
            badam_verbose=0,
        ),
    ),
)

SWANLAB = Group(
    "SwanLab",
    all_refused(
        _SWANLAB,
        use_swanlab=False,
        swanlab_project="llamafactory",
        swanlab_workspace=None,
        swanlab_run_name=None,
        swanlab_mode="cloud",
        swanlab_api_key=None,
        swanlab_logdir=None,
        swanlab_lark_webhook_url=None,
        swanlab_lark_secret=None,
    ),
)
