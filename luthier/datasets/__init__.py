"""Datasets: reading, validation, rendering, loss masks and tokenised Parquet, without torch.

Enter by `validate.validate_file` and `validate.check_head` for uploads, by `prepare.prepare_file` for
tokenised data, and by `python -P -m luthier.datasets RUN_FOLDER` for either as a child process.
A file passes `compression` and `containers` (bytes, rows), a row `rows` (an object), `formats` or
`entry_rows` (an `Example`), `rendering` (text and spans) and `tokenizer` (ids).
"""
