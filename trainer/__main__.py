"""`python -P -m trainer RUN_FOLDER`: the start and the end of a training process.

It listens for signals before it does anything that takes time, and ends with the exit code of
`trainer.process.run`. On SIGTERM or SIGINT the run stops at the next boundary, with a checkpoint where it has
trained, and exits 85; a run that has its last step and evaluation behind it is finished and exits 0.
"""

import sys

from trainer.stop_signal import StopSignal


def main(arguments: list[str]) -> int:
    """Run the spec of a folder; the return value is the exit code."""
    should_stop = StopSignal()
    should_stop.listen()
    # Reading specs takes an import of nearly a second, in which a signal is heard already.
    from trainer.process import run  # noqa: PLC0415

    try:
        return run(arguments, should_stop)
    finally:
        # What the exit code says is decided; a signal on the way out must not change it.
        should_stop.ignore()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
