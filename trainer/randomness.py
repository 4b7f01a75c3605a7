"""torch's random state, put aside before something that may have to be undone.

Dropout and noise draw from it; a step that is done again, or that never counted, must not have drawn.
"""

import torch


class RandomState:
    """The state of torch's generators, of the CPU and of the GPU in use, as it is now."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)
