"""The heaviest micro-batch first, so that a run which will not fit fails in its first minute.

Nothing stays of it: no update is made, gradients are dropped, and the random state is put back.
"""

import torch

from luthier.spec import Optimizer
from trainer import random_state
from trainer.data.batches import Batch
from trainer.engines import Engine
from trainer.model import trainable

# Bytes of state that lie on the device for each trained parameter. Paged state moves away when memory is
# short; Adafactor keeps a row and a column of each matrix.
_STATE_BYTES: dict[Optimizer, int] = {"adamw": 8, "adamw_8bit": 2}


def probe(engine: Engine, batch: Batch, optimizer: Optimizer) -> None:
    """Forward and backward of one micro-batch, with room kept for the optimizer's state to come.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    before = random_state.capture()
    engine.model.train()
    room = None if engine.optimizer.state else _room(engine, _STATE_BYTES.get(optimizer, 0))
    try:
        engine.probe(batch)
    finally:
        del room
        random_state.restore(*before)


def _room(engine: Engine, bytes_per_parameter: int) -> torch.Tensor:
    parameters = list(trainable(engine.model).values())
    count = sum(parameter.numel() for parameter in parameters)
    return torch.empty(count * bytes_per_parameter, dtype=torch.uint8, device=parameters[0].device)
