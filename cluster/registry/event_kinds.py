"""The kinds of events in the registry of runs. The registry stores their values and the API serves them: they never
change."""

from __future__ import annotations

from enum import StrEnum


class EventKind(StrEnum):
    """What happened. A comment says who tells it, and which fields the event's data has."""

    STATE = "state"  # the registry, at each transition: state
    NOTE = "note"
    STOP = "stop"  # whoever asked the run to stop
    TAGGED = "tagged"  # whoever changed the run's tags: tags, by key; null for one that was taken away
    ARCHIVED = "archived"  # whoever archived the run, or took that back: archived
    WAITING = "waiting"  # the driver: what the run waits for
    PRECISION = "precision"  # the driver: asked
    STRATEGY = "strategy"  # the driver: what the plan chose, and why
    MIXED_GPUS = "mixed_gpus"  # the driver
    UNCHANGED = "unchanged"  # the driver: no step changed the adapter
    PUBLISHED = "published"  # the driver or `gemfleet publish`: step, eval_loss, reason
    STOPPED_EARLY = "stopped_early"  # the driver: training ended before its last step
    NOT_COMPARED = "not_compared"  # the driver: why the result could not be compared with what was trained
    DELIVERED = "delivered"  # the driver
    BATCH_PLANNED = "batch_planned"  # the driver: rows, reason
    BATCH_CACHED = "batch_cached"  # the driver: variant, rows, key
    BATCH_TRIAL = "batch_trial"  # the driver: one trial by probes
    BATCH_TABLE = "batch_table"  # the driver: a line of the table of trials
    BATCH_NOTE = "batch_note"  # the driver
    BATCH_FOUND = "batch_found"  # the driver: variant, rows, trials, key
    ATTEMPT = "attempt"  # Ray's controller, for each group of ranks that starts: generation
    RESUME = "resume"  # rank 0: where training starts
    SHARES = "shares"  # rank 0: the ranks' weights, and the step from which they hold: shares, shares_from_step
    RESULT = "result"  # rank 0, at the end of training: its `TrainResult`
    FATAL = "fatal"  # a rank, for an error that a restart would meet again: rank, cause (`user` or `training`)
    RANK_FAILED = "rank_failed"  # Ray's controller: rank
    RANK_OUT_OF_MEMORY = "rank_out_of_memory"  # a rank, and several may say so at once: rank, micro
    OUT_OF_MEMORY = "out_of_memory"  # the driver's answer to it, once: rank, from, to
    PLACES_LOST = "places_lost"  # Ray's controller: room, joined
    MOVING = "moving"  # the driver, before ranks save and end to go on elsewhere: kind
    MOVED = "moved"  # the driver, before ranks start elsewhere or in another number: from, to, excused
    HANG = "hang"  # a rank's watchdog: rank, phase, seconds
    CHECKPOINT = "checkpoint"  # the store, for each commit
    TRACKER = "tracker"  # the process of an experiment tracker, or the driver: tracker, link or lost_steps
    NOTICE_LOST = "notice_lost"  # the process that tells a webhook: place, what
    DISK_LOW = "disk_low"  # the store: free_bytes
    CHECKPOINT_FAILED = "checkpoint_failed"  # a rank: one checkpoint did not reach the head
    CHECKPOINT_DAMAGED = "checkpoint_damaged"  # rank 0: one was passed over
