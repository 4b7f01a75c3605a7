"""The catalogue of faults, F1 to F56: in words, where each is shown, and why some are not.

`SHOWN` names tests that do not bear their number; those that do (`test_f16_...`, or F16 in a docstring) are
found by themselves. `tests/chaos/test_catalogue.py` holds the table to the tests.
"""

WORDS: dict[int, str] = {
    1: "kill -9 of an agent in the middle of a step",
    2: "kill -9 of a trainer",
    3: "a trainer that crashes every time",
    4: "an agent sleeps for longer than its lease, and wakes",
    5: "a trainer that stands still",
    6: "the host was started anew",
    7: "agent and dispatcher die together",
    8: "two dispatchers",
    9: "no broker at submit",
    10: "a broker that accepts and never answers",
    11: "the broker is started anew in the middle of a job",
    12: "the broker forgets all",
    13: "the broker is full",
    14: "a doorbell is lost on its way to a worker",
    15: "a doorbell rings a hundred times",
    16: "Postgres is stopped at once, for some seconds",
    17: "the database is away for nearly as long as a lease",
    18: "a commit stands, and its caller sees an error",
    19: "the database breaks off a transaction",
    20: "another process holds SQLite's lock for long",
    21: "SQLite on a network file system, or of an unsafe version",
    22: "the database's disk is full",
    23: "the disk is full in the middle of a checkpoint",
    24: "fsync fails",
    25: "kill -9 during publish, at any byte",
    26: "a crash between the rename and the row",
    27: "a crash before the rename",
    28: "a bit of the newest checkpoint is flipped",
    29: "all checkpoints are damaged",
    30: "a worker's clock jumps by an hour",
    31: "the database's clock jumps by an hour",
    32: "a leased row without an end of its lease",
    33: "SIGTERM to an agent",
    34: "SIGTERM to an agent, then SIGKILL before it has saved",
    35: "cancel in every state",
    36: "cancel while broker and agent are away",
    37: "a client repeats a submit after a timeout",
    38: "kill -9 of the API during an upload",
    39: "two uploads of the same content",
    40: "a file is deleted while a job uses it",
    41: "the model hub answers 429 or 503, or slowly",
    42: "the hub's token is taken back during a download",
    43: "the GPU's memory runs out",
    44: "the host's memory runs out",
    45: "the GPU fails",
    46: "the loss is not a number",
    47: "a MemoryError in a Celery task",
    48: "a trainer prints without end",
    49: "a trainer leaves daemons behind",
    50: "a webhook's target is down, slow or elsewhere",
    51: "the schema is migrated while jobs run",
    52: "the release is taken back",
    53: "one project queues a thousand jobs",
    54: "agent and trainer are of different releases",
    55: "a backup of an hour ago is restored",
    56: "the key of stored secrets is missing at start",
}

# Number: a test that shows it and does not bear the number, as `file::function`.
SHOWN: dict[int, str] = {}

LEFT_OUT: dict[int, str] = {}
