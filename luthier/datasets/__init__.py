"""Datasets: reading, validation, rendering, loss masks and tokenised Parquet, without torch.

Enter by `validate.validate_file` and `validate.check_head` for uploads, `prepare.prepare_file` for tokenised
data, `preview.preview_rows` and `measure.measure` for a look at it, `cache.cache_key` for its name, and by
`python -P -m luthier.datasets RUN_FOLDER` for any of these as a child process. A file passes `compression`
and `containers` (bytes, rows); a row passes `rows` (an object), `formats` or `entry_rows` (an `Example`),
`rendering` (text and turns), `tokenizer` (ids) and `truncation`; in the style of LLaMA-Factory,
`llamafactory` stands in for the last three.
"""
