"""Names of LLaMA-Factory's arguments, listed by class from its documentation and not from our table."""

DATA = """
template dataset eval_dataset dataset_dir media_dir cutoff_len train_on_prompt mask_history streaming
buffer_size packing neat_packing enable_thinking mix_strategy interleave_probs overwrite_cache
preprocessing_batch_size preprocessing_num_workers max_samples ignore_pad_token_for_loss val_size
eval_on_each_dataset tokenized_path tool_format default_system preserve_thinking"""
MODEL = """model_name_or_path adapter_name_or_path adapter_folder cache_dir use_fast_tokenizer resize_vocab
split_special_tokens add_tokens add_special_tokens new_special_tokens_config init_special_tokens
model_revision low_cpu_mem_usage rope_scaling flash_attn shift_attn mixture_of_depths use_unsloth
use_unsloth_gc enable_liger_kernel disable_gradient_checkpointing use_reentrant_gc upcast_layernorm
upcast_lmhead_output train_from_scratch infer_backend infer_dtype trust_remote_code hf_hub_token ms_hub_token
om_hub_token"""
QUANTIZATION = "quantization_method quantization_bit quantization_type double_quantization"
EXPORT = """export_dir export_size export_device export_quantization_bit export_quantization_dataset
export_quantization_nsamples export_quantization_maxlen export_legacy_format export_hub_model_id"""
INFERENCE = "vllm_maxlen vllm_gpu_util vllm_max_lora_rank sglang_maxlen"
FINETUNING = """stage finetuning_type lora_rank lora_alpha lora_dropout lora_target additional_target
loraplus_lr_ratio use_rslora use_dora pissa_init pissa_iter pissa_convert create_new_adapter oft_block_size
freeze_trainable_layers freeze_trainable_modules freeze_extra_modules use_galore use_apollo use_badam
use_adam_mini use_muon use_dft_loss use_asft_loss asft_alpha use_eaft_loss eaft_alpha pure_bf16
compute_accuracy disable_shuffling early_stopping_steps plot_loss include_effective_tokens_per_second
use_swanlab swanlab_lark_webhook_url fp8 enable_torch_profiler ray_num_workers use_kt"""
TRAINING = """output_dir overwrite_output_dir do_train do_eval do_predict eval_strategy
per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps learning_rate weight_decay
adam_beta1 adam_beta2 adam_epsilon max_grad_norm num_train_epochs max_steps lr_scheduler_type
lr_scheduler_kwargs warmup_ratio warmup_steps logging_dir logging_strategy logging_first_step logging_steps
save_strategy save_steps save_total_limit save_safetensors save_only_model no_cuda use_cpu seed data_seed bf16
fp16 tf32 local_rank ddp_backend ddp_timeout dataloader_drop_last eval_steps dataloader_num_workers run_name
disable_tqdm remove_unused_columns label_names load_best_model_at_end metric_for_best_model greater_is_better
fsdp fsdp_config deepspeed label_smoothing_factor optim optim_args group_by_length report_to push_to_hub
resume_from_checkpoint hub_model_id hub_token gradient_checkpointing auto_find_batch_size full_determinism
torch_compile include_num_input_tokens_seen neftune_noise_alpha predict_with_generate generation_max_length"""
GENERATION = "do_sample temperature top_p top_k num_beams max_new_tokens repetition_penalty"
EVALUATION = "task task_dir batch_size lang n_shot save_dir"

NAMES = sorted(
    " ".join(
        (DATA, MODEL, QUANTIZATION, EXPORT, INFERENCE, FINETUNING, TRAINING, GENERATION, EVALUATION)
    ).split()
)
