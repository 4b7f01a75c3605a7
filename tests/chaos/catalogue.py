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

# Number: tests that show it and do not bear the number, as `file::function`, the file below `tests/`.
SHOWN: dict[int, tuple[str, ...]] = {
    3: (
        "worker/test_supervisor.py::test_a_crash_is_tried_again_from_the_checkpoint_and_then_given_up",
        "luthier/test_retries.py::test_a_job_that_dies_again_and_again_is_set_aside",
    ),
    5: ("worker/test_endings.py::test_a_stopped_process_is_hung",),
    6: (
        "worker/test_agent_process.py::test_what_ran_before_the_machine_started_anew_is_taken_back_without_the_lock",
    ),
    9: (
        "api/test_broker.py::test_nothing_that_a_user_does_with_a_job_asks_the_broker",
        "worker/test_doorbells.py::test_work_goes_on_by_polling_while_the_broker_is_away",
    ),
    10: ("worker/test_relay.py::test_a_broker_that_accepts_and_never_answers_is_given_up",),
    11: ("worker/test_doorbells.py::test_a_running_job_does_not_notice_that_the_broker_dies",),
    12: ("worker/test_relay.py::test_an_emptied_broker_gets_its_doorbells_again",),
    13: ("worker/test_relay.py::test_a_doorbell_outlives_a_broker_that_fails",),
    14: ("worker/test_doorbells.py::test_a_doorbell_that_dies_with_its_worker_is_rung_again",),
    15: ("worker/test_doorbells.py::test_a_hundred_doorbells_are_one_run",),
    18: (
        "luthier/test_commits.py::test_what_a_lost_answer_would_have_said_is_read_back",
        "luthier/test_commits.py::test_no_count_is_lost_or_doubled_among_failing_commits",
    ),
    19: (
        "luthier/test_commits.py::test_a_conflict_is_tried_again_and_not_for_ever",
        "luthier/test_commits.py::test_two_transactions_that_deadlock_both_get_through",
    ),
    20: (
        "luthier/test_commits.py::test_a_writer_that_waits_too_long_is_told_so_and_loses_nothing",
        "api/test_database_faults.py::test_a_writer_in_the_way_is_503_with_retry_after_and_reads_go_on",
    ),
    21: (
        "luthier/test_database.py::test_write_ahead_log_only_where_it_is_safe",
        "luthier/test_database.py::test_a_database_on_a_network_file_system_is_refused_before_a_file_is_made",
    ),
    22: ("luthier/test_full_disk.py::test_states_are_written_on_a_disk_that_is_really_full",),
    23: (
        "trainer/test_failures.py::test_a_checkpoint_without_room_ends_the_run_and_leaves_no_half",
        "worker/test_endings.py::test_a_full_disk_blocks_the_job_without_using_a_budget",
        "worker/test_disk_watch.py::test_a_dispatcher_lets_blocked_jobs_go_on_within_a_sweep",
    ),
    25: (
        "luthier/storage/test_crashes.py::test_no_death_while_publishing_leaves_a_torn_folder",
        "luthier/storage/test_crashes.py::test_no_death_of_a_thousand_leaves_a_torn_folder",
    ),
    33: (
        "worker/test_supervisor.py::test_an_agent_that_makes_room_queues_the_job_and_the_next_one_resumes_it",
        "worker/test_doorbells.py::test_a_worker_that_is_told_to_stop_saves_and_gives_the_job_back",
        "trainer/test_process.py::test_sigterm_ends_the_step_saves_and_exits_85",
    ),
    41: (
        "luthier/test_fetcher.py::test_trouble_that_passes_is_waited_for",
        "worker/test_fetch.py::test_a_hub_that_refuses_for_now_has_the_job_wait_and_go_on_by_itself",
    ),
    42: (
        "luthier/test_fetcher.py::test_a_refusal_says_what_to_do",
        "luthier/test_fetcher.py::test_a_refused_token_is_not_repeated",
    ),
    43: (
        "worker/test_supervisor.py::test_where_memory_ran_out_stands_on_the_job",
        "trainer/test_fit.py::test_auto_fit_halves_once_and_goes_on_with_the_same_rows",
    ),
    44: ("worker/test_endings.py::test_a_kill_by_the_kernel_for_want_of_memory_is_told_from_a_crash",),
    45: ("worker/test_set_aside.py::test_a_gpu_with_a_fault_is_set_aside_and_the_job_goes_elsewhere",),
    46: ("trainer/test_training.py::test_a_loss_that_is_not_finite_ends_the_run",),
    47: ("worker/test_doorbells.py::test_memory_that_runs_out_in_a_task_does_not_end_the_worker",),
    48: ("worker/test_supervisor.py::test_a_flood_of_output_is_cut",),
    49: (
        "worker/test_endings.py::test_a_daemon_that_a_child_leaves_is_gone_before_the_job_has_ended",
        "worker/test_process_tree.py::test_a_daemon_that_dropped_the_mark_is_adopted_and_ended",
    ),
    51: ("worker/test_older_release.py::test_an_old_agent_does_a_job_on_the_new_schema_from_data_to_model",),
    52: ("worker/test_older_release.py::test_a_migration_takes_nothing_away_that_the_release_before_writes",),
    53: (
        "luthier/test_claims.py::test_the_project_with_the_fewest_jobs_at_work_goes_first",
        "luthier/test_quotas.py::test_of_many_submits_at_once_no_more_than_the_quota_pass",
    ),
    55: ("luthier/test_backup.py::test_epochs_go_on_above_all_that_were_given_since",),
}

LEFT_OUT: dict[int, str] = {}

# What one machine cannot show of a fault that is shown otherwise.
ONLY_IN_PART: dict[int, str] = {
    6: "a boot id is changed, the machine is not started anew",
    16: "the server is stopped at once; power is not cut, and no dm-flakey drops writes behind fsync",
    21: "the file system's type is told to the check; no NFS is mounted",
    24: "fsync is made to fail in the process; no disk fails",
    30: "the code is read: no decision of a worker reads a wall clock",
    31: "another time is passed to the service; no server's clock is set",
    43: "a trainer exits as one does whose GPU ran out; the probe and halving run on a CPU",
    45: "a trainer exits as one does on a fault of the GPU; no GPU is broken",
    54: "spec.json is given another version",
}
