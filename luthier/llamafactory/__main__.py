"""`python -m luthier.llamafactory > docs/llamafactory.md` makes the page anew."""

import sys

from luthier.llamafactory.page import page

if __name__ == "__main__":
    sys.stdout.write(page())
