"""A dispatcher in a process of its own, which a test stops and continues: `URL DATA_DIR LEASE_SECONDS`.

It says `leads` once it leads. Each line on stdin names a part that it is to do; the answer is `done`, or
`lost` where it does not lead any more.
"""

import sys
from pathlib import Path

from luthier.installation import open_installation
from luthier.service.leadership import LeadershipLostError
from luthier.settings import Settings
from worker.housekeeping import Housekeeper
from worker.relay import Relay
from worker.ringing import DoorbellSender
from worker.seat import Seat

url, folder, lease_seconds = sys.argv[1:]
settings = Settings(
    data_dir=Path(folder), database_url=url, lease_seconds=float(lease_seconds), keep_orphans_hours=1e-9
)
installation = open_installation(settings)
seat = Seat(installation, "stopped")
assert seat.keep(0.0)
parts = {
    "relay": Relay(installation, DoorbellSender(settings, None), seat).relay,
    "rows": Housekeeper(installation, seat).drop_rows,
    "orphans": Housekeeper(installation, seat).collect_orphans,
}
print("leads", flush=True)
for line in sys.stdin:
    try:
        parts[line.strip()]()
        print("done", flush=True)
    except LeadershipLostError:
        print("lost", flush=True)
