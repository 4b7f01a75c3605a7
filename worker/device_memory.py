"""Waits for the GPU memory that a run took: it is back once the driver lists none of the run's processes.

A driver inside a container may number processes otherwise than we do, and then shows none of them; the kernel
frees what a process has open on a device before anybody sees the process as gone.
"""

import time
from collections.abc import Collection

from luthier.devices import Device, read_usage
from worker.child import UnkillableError

_LOOK_SECONDS = 0.1


def await_device_memory(device: Device, pids: Collection[int], *, seconds: float) -> None:
    """Until the driver shows none of the processes on the device any more, or does not answer.

    Raises:
        UnkillableError: it still does, after so many seconds.
        DeviceMissingError: it has lost the device.
    """
    if not device.is_gpu:
        return
    deadline = time.monotonic() + seconds
    while (usage := read_usage(device)) is not None and (left := usage.pids.intersection(pids)):
        if time.monotonic() > deadline:
            raise UnkillableError(f"memory of the ended process {min(left)} is not given back")
        time.sleep(_LOOK_SECONDS)
