"""Datasets: reading, validation, rendering, loss masks and tokenised Parquet, without torch.

Enter by `validate.validate_file` and `validate.check_head` for uploads, by `prepare.prepare_file` for
tokenised data, and by `python -P -m luthier.datasets RUN_FOLDER` for either as a child process.
A row passes `rows` (bytes), `formats` (an `Example`), `rendering` (text and spans) and `tokenizer` (ids).
"""
