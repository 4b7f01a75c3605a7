"""Arguments about the rows: which datasets, by which template, how long, which tokens are trained.

`DATA` holds a row for each, with that system's default; `luthier.llamafactory.table` puts the groups
together.
"""

from luthier.llamafactory.table.rows import Group, all_idle, honoured, idle, mapped, refused

_CACHE = "prepared rows are always cached, and made anew when anything that they depend on changes"

DATA = Group(
    "Data",
    (
        honoured(
            "template",
            None,
            "dataset.template",
            note="null is the model's own chat template, taken apart as that system does: preparation tells "
            "where that is not what the template writes, and refuses one that cannot be taken apart; `empty` "
            "for a model without one",
        ),
        mapped(
            "dataset",
            None,
            "training_file",
            "dataset.files",
            note="each name is a file registered under it; the command line registers those of dataset_dir",
        ),
        mapped("eval_dataset", None, "validation_file", note="one name; several are refused"),
        mapped(
            "dataset_dir",
            "data",
            note="where the command line finds dataset_info.json, beside the job file or else here; a server "
            "has registered files",
        ),
        idle("media_dir", None, "there are no images, videos or sounds in text"),
        honoured("cutoff_len", 2048, "qlora.max_seq_length", note="cut by that system's own rule"),
        mapped("train_on_prompt", False, "dataset.train_on", note="true is `all`"),
        mapped("mask_history", False, "dataset.train_on", note="true is `last`"),
        idle("streaming", False, "rows are always read from disk as they are needed, shuffled as a whole"),
        idle("buffer_size", 16_384, "rows are shuffled as a whole"),
        refused(
            "mix_strategy", "concat", "several datasets are joined (`concat`), and weighed by dataset.files"
        ),
        refused("interleave_probs", None, "several datasets are joined, and weighed by dataset.files"),
        idle("overwrite_cache", False, _CACHE),
        *all_idle(
            "the worker chooses how rows are prepared",
            preprocessing_batch_size=1000,
            preprocessing_num_workers=None,
        ),
        honoured("max_samples", None, "dataset.max_samples", note="the first rows of each dataset"),
        idle("eval_num_beams", None, "evaluation measures the loss and generates by greedy search"),
        refused("ignore_pad_token_for_loss", True, "padding is never trained on"),
        mapped(
            "val_size",
            0.0,
            "dataset.validation_split",
            "dataset.validation_rows",
            note="a share below 1, or a number of rows; other rows than there, since the seeds differ",
        ),
        refused("eval_on_each_dataset", False, "the validation rows are evaluated together"),
        mapped(
            "packing",
            None,
            "qlora.packing",
            note="rows that share a sequence do not see each other, as with neat_packing",
        ),
        honoured("neat_packing", False, "qlora.packing"),
        refused("tool_format", None, "tools are written as the template writes them"),
        refused("default_system", None, "put the system message into the rows (column `system`)"),
        mapped(
            "enable_thinking",
            True,
            "dataset.thoughts",
            note="of reasoning templates: an answer without a thought gets an empty one, which is trained on "
            "(true, `learn`) or is a part of the prompt (null, `give`); false (`remove`) takes all thoughts "
            "out before",
        ),
        refused(
            "preserve_thinking", False, "thoughts of earlier turns are treated as the template treats them"
        ),
        refused("tokenized_path", None, f"{_CACHE}: name the dataset itself"),
        idle(
            "data_shared_file_system",
            False,
            "the worker that prepares a job shares its files with the trainer",
        ),
    ),
)
