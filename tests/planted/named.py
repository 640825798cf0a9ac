"""The named interleavings that find each planted bug: the lowest level, and the quickest.

`python -m planted.named NAME`: plants the bug and plays them; exit status 1 and the name of the test when one fails, 0 when none does.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Sequence

import pytest
import structlog

from planted.bugs import BUGS, planted
from qsg.rules.reasons import Refusal
from qsg.rules.status import IllegalTransition

FINDERS: dict[str, tuple[str, ...]] = {
    "no_fence": (
        "taking.test_c7_a_stalled_taker_cannot_bring_an_old_epoch_back",
        "claims.test_p5_a_get_in_flight_fails_when_a_channel_locks",
    ),
    "lock_not_compared": ("taking.test_n13_a_dead_initiators_lock_is_given_up_by_its_living_queue_manager",),
    "member_key_not_compared": ("store.test_c5_a_member_declared_dead_writes_nothing_at_all",),
    "verdict_by_name": ("members.test_h3b_a_verdict_names_the_incarnation_and_leaves_its_successor_alone",),
    "ownership_from_a_stale_read": ("taking.test_c7_two_takers_who_have_read_the_same_one_has_it",),
    "lock_from_a_stale_read": ("claims.test_h8_a_claim_that_comes_between_read_and_lock_is_seen",),
    "recovery_not_idempotent": ("rabbitmq.test_rabbitmq_16662g_of_two_that_recover_the_same_one_does",),
    "stopped_lost_at_takeover": ("stopping.test_n5_a_stop_whose_member_dies_stays_a_stop",),
    "stopped_without_the_partner": ("stopping.test_n5_a_paused_sender_that_wakes_after_the_stop_moves_nothing",),
    "doorbells_not_compared": ("taking.test_h6_an_idle_channel_does_not_end_over_a_message_that_comes_between",),
    "blind_repeat": ("puts.test_c1_a_commit_that_comes_late_is_not_told_refused_and_not_repeated_beside_itself",),
    "failed_copy_is_the_end": ("puts.test_p1_a_failed_part_of_an_attempt_sent_twice_is_told_only_behind_the_guard",),
    "guard_by_number": ("puts.test_n6_the_id_of_the_attempt_tells_a_transaction_from_a_void_advance",),
    "record_without_epoch": ("receiver.test_p14_a_delayed_bind_of_an_older_instance_displaces_nobody",),
    "positions_not_checked": ("receiver.test_c3_a_batch_that_comes_again_is_refused_by_its_positions",),
    "resync_one_too_few": ("lanes.test_c3_a_half_sent_segment_keeps_its_place_when_more_is_put",),
    "resync_one_too_many": ("lanes.test_c3_a_half_sent_segment_keeps_its_place_when_more_is_put",),
    "lanes_each_for_itself": ("lanes.test_p3_a_lane_that_is_not_read_yet_holds_the_others_back",),
    "acknowledged_before_the_commit": ("puts.test_c1_nothing_is_acknowledged_while_the_store_has_not_answered",),
    "confirmed_before_the_commit": ("receiver.test_n2_nothing_is_confirmed_and_nothing_deleted_before_it_is_stored",),
    "record_apart_from_its_batch": ("receiver.test_m1_a_record_is_there_as_soon_as_its_batch_is",),
    "deleted_before_the_confirm": ("receiver.test_n2_nothing_is_confirmed_and_nothing_deleted_before_it_is_stored",),
    "watch_from_the_wrong_revision": ("store.test_m4_what_is_committed_right_behind_a_list_is_seen",),
    "lease_by_wall_clock": ("members.test_h3_a_clock_that_is_set_accuses_nobody",),
    "claims_not_released": ("claims.test_h8_what_is_backed_out_can_be_got_and_sent_again",),
    "claims_of_the_dead_kept": ("claims.test_h8_claims_of_a_dead_member_are_void",),
    "gets_do_not_compare_the_fence": ("claims.test_p5_a_get_in_flight_fails_when_a_channel_locks",),
    "producer_epoch_ignored": ("puts.test_h9_a_late_put_of_an_earlier_connection_is_not_taken_beside_its_repetition",),
    "producer_gap_ignored": ("puts.test_n3_a_refusal_refuses_everything_behind_it",),
}
"""Bug -> its tests, as `<theme>.<test>` under `interleavings`."""


TOLD = (AssertionError, pytest.fail.Exception, TimeoutError, Refusal, IllegalTransition)
"""How a test says that something is not as it should be. Anything else: the bug breaks what it is planted in."""


def test_of(name: str) -> Callable[[], None]:
    """A named interleaving, to be called."""
    theme, _, function = name.partition(".")
    found: Callable[[], None] = getattr(importlib.import_module(f"interleavings.test_{theme}"), function)
    return found


test_of.__test__ = False  # type: ignore[attr-defined]


def found_by(bug: str) -> list[str]:
    """Plants a bug and plays the tests that are said to find it: those that do."""
    tests = {name: test_of(name) for name in FINDERS[bug]}
    found = []
    with planted(bug):
        for name, play in tests.items():
            try:
                play()
            except TOLD as error:
                found.append(f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            except Exception as error:
                sys.stdout.write(f"{name} broke: {error!r}\n")
    return found


def main(arguments: Sequence[str]) -> int:
    (bug,) = arguments
    logging.disable(logging.CRITICAL)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    found = found_by(bug)
    for line in found:
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"{len(found)} of {len(FINDERS[bug])} named interleavings found {bug}: {BUGS[bug].what}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
