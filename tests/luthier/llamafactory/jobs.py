"""Jobs as LLaMA-Factory's users write them."""

# The tutorial's own file and command line.
TUTORIAL = """\
### model
model_name_or_path: Qwen/Qwen2.5-1.5B
### method
stage: sft
do_train: true
finetuning_type: lora
lora_target: all
### dataset
dataset: alpaca_zh,custom_data
template: qwen
cutoff_len: 1024
max_samples: 10000
overwrite_cache: true
preprocessing_num_workers: 16
### output
output_dir: saves/qwen2.5-1.5b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
### train
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
fp16: true
### eval
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
"""
TUTORIAL_FLAGS = (
    "--model_name_or_path Qwen/Qwen2.5-1.5B --stage sft --do_train --finetuning_type lora "
    "--lora_target q_proj,v_proj --dataset alpaca_zh --template qwen --output_dir ./output "
    "--per_device_train_batch_size 4 --gradient_accumulation_steps 4 --learning_rate 1e-4 "
    "--num_train_epochs 3 --logging_steps 10 --save_steps 100 --fp16"
)

# That system's example for 4 bits.
QLORA = """\
model_name_or_path: Qwen/Qwen3-4B-Instruct-2507
quantization_bit: 4
quantization_method: bnb
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity,alpaca_en_demo
template: qwen3_nothink
cutoff_len: 2048
max_samples: 1000
preprocessing_num_workers: 16
dataloader_num_workers: 4
output_dir: saves/qwen3-4b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
"""
