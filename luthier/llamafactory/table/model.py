"""Arguments about the base model: which one, how it is loaded, quantised, exported and served."""

from luthier.llamafactory.table.rows import Group, all_idle, all_refused, honoured, idle, mapped, refused

_TEXT_ONLY = "models are trained on text alone"
_SPEED = "chooses how the same numbers are computed; the engine chooses for itself"
_NO_NEW_TOKENS = "the vocabulary stays as the model has it"
_INFERENCE = "is about inference, and training takes no notice of it"
_KTRANSFORMERS = "KTransformers is not an engine of Luthier's"
_SECRET = "a job carries no secrets: store the token with the server (HF_TOKEN)"  # noqa: S105
_EXPORT = "exporting is not a part of a training job: take the adapter from the job's artifacts"

MODEL = Group(
    "Model",
    (
        honoured(
            "model_name_or_path",
            None,
            "model",
            note="a name in the model folder or on the hub; for `luthier train` also a folder",
        ),
        mapped(
            "adapter_name_or_path",
            None,
            "model",
            note="the name of one model tuned here (`ft:...`) is trained on from; a folder is refused",
        ),
        refused("adapter_folder", None, "name the tuned model in adapter_name_or_path"),
        idle("cache_dir", None, "base models lie in the server's model folder"),
        idle("use_fast_tokenizer", True, "the fast tokenizer is always used"),
        refused("resize_vocab", False, _NO_NEW_TOKENS),
        refused(
            "split_special_tokens", False, "special tokens in the text are read as that system reads them"
        ),
        refused("add_tokens", None, _NO_NEW_TOKENS),
        refused("add_special_tokens", None, _NO_NEW_TOKENS),
        refused("new_special_tokens_config", None, _NO_NEW_TOKENS),
        idle("init_special_tokens", "noise_init", _NO_NEW_TOKENS),
        refused(
            "model_revision",
            "main",
            "the commit is pinned when the model is pulled: put the folder of another into the model folder",
        ),
        idle("low_cpu_mem_usage", True, "weights are always read straight to where they are needed"),
        refused("rope_scaling", None, "a model is trained within the context that its config.json gives"),
        idle("flash_attn", "auto", _SPEED),
        refused("shift_attn", False, "shifted sparse attention changes the model, and is not there"),
        refused("mixture_of_depths", None, "changes the model, and is not there"),
        refused(
            "use_unsloth", False, "Unsloth is not an engine of Luthier's: leave it out, packing is fast here"
        ),
        idle("use_unsloth_gc", False, "gradient checkpointing is planned by the trainer"),
        idle("enable_liger_kernel", False, _SPEED),
        refused("moe_aux_loss_coef", None, "the router's auxiliary loss is not added"),
        mapped(
            "disable_gradient_checkpointing",
            False,
            "qlora.gradient_checkpointing",
            note="true turns it off; otherwise the trainer turns it on where memory asks for it",
        ),
        idle("use_reentrant_gc", True, "changes no number"),
        refused("upcast_layernorm", False, "the precision of each layer is the trainer's"),
        refused("upcast_lmhead_output", False, "the loss is computed in fp32 in every case"),
        refused("train_from_scratch", False, "training starts from the weights of the base model"),
        *all_idle(
            _INFERENCE,
            infer_backend="huggingface",
            offload_folder="offload",
            use_kv_cache=True,
            infer_dtype="auto",
        ),
        idle("use_v1_kernels", False, _SPEED),
        refused("hf_hub_token", None, _SECRET),
        refused("ms_hub_token", None, _SECRET),
        refused("om_hub_token", None, _SECRET),
        idle("print_param_status", False, "the run's plan tells how many parameters are trained"),
        idle(
            "trust_remote_code",
            False,
            "no code that comes with a model is ever run; a model that needs such code is refused",
        ),
    ),
)

QUANTIZATION = Group(
    "Quantization",
    (
        mapped(
            "quantization_method",
            "bnb",
            "qlora.quantization",
            note="`bnb` alone; hqq, eetq and the rest are refused",
        ),
        mapped(
            "quantization_bit",
            None,
            "qlora.method",
            "qlora.quantization",
            note="4 is method `qlora` in NF4 or FP4, 8 is method `qlora` in int8, none is method `lora`",
        ),
        honoured("quantization_type", "nf4", "qlora.quantization", note="`nf4` or `fp4`, with 4 bits"),
        honoured("double_quantization", True, "qlora.double_quant"),
        idle("quantization_device_map", None, "the device is the worker's"),
    ),
)

MULTIMODAL = Group(
    "Images, video and sound",
    all_refused(
        _TEXT_ONLY,
        image_max_pixels=589_824,
        image_min_pixels=1024,
        image_do_pan_and_scan=False,
        crop_to_patches=False,
        video_max_pixels=65_536,
        video_min_pixels=256,
        video_fps=2.0,
        video_maxlen=128,
        use_audio_in_video=False,
        audio_sampling_rate=16_000,
    ),
)

EXPORT = Group(
    "Export",
    (
        refused("export_dir", None, _EXPORT),
        *all_idle("has no meaning without export_dir", export_size=5, export_device="cpu"),
        refused("export_quantization_bit", None, _EXPORT),
        refused("export_quantization_dataset", None, _EXPORT),
        *all_idle(
            "has no meaning without export_dir",
            export_quantization_nsamples=128,
            export_quantization_maxlen=1024,
            export_legacy_format=False,
        ),
        refused("export_hub_model_id", None, _EXPORT),
    ),
)

INFERENCE = Group(
    "Inference",
    all_idle(
        _INFERENCE,
        vllm_maxlen=4096,
        vllm_gpu_util=0.7,
        vllm_enforce_eager=False,
        vllm_max_lora_rank=32,
        vllm_config=None,
        sglang_maxlen=4096,
        sglang_mem_fraction=0.7,
        sglang_tp_size=-1,
        sglang_config=None,
        sglang_lora_backend="triton",
    ),
)

KTRANSFORMERS = Group(
    "KTransformers",
    all_refused(
        _KTRANSFORMERS,
        use_kt=False,
        kt_cpu_activation=None,
        kt_weight_path=None,
        kt_non_expert_weight_path=None,
        kt_expert_checkpoint_path=None,
        kt_use_lora_experts=None,
        kt_lora_expert_num=None,
        kt_lora_expert_intermediate_size=None,
        kt_config=None,
    ),
)
