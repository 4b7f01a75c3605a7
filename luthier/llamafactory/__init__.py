"""Jobs of LLaMA-Factory: its arguments, from a YAML, from flags or from HTTP, become a job of ours.

Enter by `is_llamafactory` and `convert`. `table` holds every argument and what becomes of it, `registry`
finds the datasets of a folder with a dataset_info.json, and `python -m luthier.llamafactory` prints the page
docs/llamafactory.md. The facts are those of release 0.9.6; nothing of its code is here.
"""

from luthier.llamafactory.convert import Converted, convert, is_llamafactory

__all__ = ["Converted", "convert", "is_llamafactory"]
