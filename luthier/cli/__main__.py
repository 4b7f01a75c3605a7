"""`python -P -m luthier.cli`: the command line, as the console script runs it."""

from luthier.cli import main

if __name__ == "__main__":
    main()
