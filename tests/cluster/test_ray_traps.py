"""What Ray 2.60 does that a trusting caller would stumble over, and the tests that show what gemfleet does about it.

The list is checked against the files, so that no entry outlives its test.
"""

from __future__ import annotations

import pytest
from support.places import TESTS

STORE, COMMIT = "cluster/checkpoint_store/test_store_on_ray.py::", "cluster/checkpoint_store/test_commit.py::"
POLICY = "launcher/run/training/test_failure_policy.py::"
TRAPS = {
    "a filesystem handler of `__main__` does not pickle": f"{STORE}test_the_handler_pickles_and_stays_equal",
    "unpickled filesystems compare unequal, so checkpoints are not recognised": (
        f"{STORE}test_the_handler_pickles_and_stays_equal"
    ),
    "what is left of a failed upload is sent as its end": "cluster/checkpoint_store/test_checkpoint_faults.py::"
    "test_a_full_disk_poisons_the_upload_and_publishes_nothing",
    "a stream that is dropped or left by an error is closed, and published": (
        f"{STORE}test_only_a_stream_that_was_closed_in_order_publishes"
    ),
    "uploads are retried for a few AWS errors only": f"{STORE}test_a_killed_store_costs_a_retry_and_nothing_else",
    "the snapshot is rewritten in place": f"{STORE}test_a_snapshot_is_never_half_written",
    "a corrupt snapshot blocks resume": "faults/test_runs.py::test_a_killed_driver_and_a_damaged_checkpoint",
    "an exception out of a callback ends the run": f"{POLICY}test_a_lost_rank_is_told_and_restarted",
    "`report` returns before the checkpoint is committed": f"{COMMIT}test_sweep_removes_what_no_manifest_names",
    "a rank of an attempt that is over may still be sending": (
        f"{STORE}test_an_older_attempt_is_refused_without_retries"
    ),
    "an actor that is made again remembers nothing": f"{COMMIT}test_a_restarted_store_goes_on",
    "actors end when the last handle of their creator goes": (
        f"{STORE}test_actors_live_while_their_creator_holds_them_and_end_with_it"
    ),
    "no failure is forgiven unless `max_failures` says so": "faults/test_runs.py::test_a_killed_rank",
    "a hung rank still answers health checks": "faults/test_runs.py::test_a_rank_that_hangs",
    "one rank's error leaves the others in a collective": "faults/test_one_rank_fails.py::"
    "test_the_run_ends_at_once_and_is_not_restarted",
    "gloo binds to what the host name resolves to": "hosts/test_three_hosts.py::"
    "test_job_trains_on_the_workers_and_checkpoints_come_home",
    "`ray job stop` sends SIGTERM, and Train saves nothing": "faults/test_runs.py::"
    "test_sigterm_saves_and_resume_ends_bit_identical",
    "Ray takes the handler of SIGTERM as it starts, and again as it ends": "faults/test_signals.py"
    "::test_a_signal_ends_the_run_in_order",
    "a local Ray shares the driver's group, and dies of its signals": "faults/test_signals.py::"
    "test_a_signal_ends_the_run_in_order",
    "a job's working directory may hold 100 MiB": "launcher/submit/test_job.py::"
    "test_a_folder_above_the_limit_names_its_largest_files",
}


@pytest.mark.parametrize("trap", TRAPS)
def test_each_trap_has_its_test(trap: str) -> None:
    file, name = TRAPS[trap].split("::")
    assert f"\ndef {name}(" in (TESTS / file).read_text()
