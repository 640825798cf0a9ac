"""The ledger must see every kind of wrong: it is what the demo's verdict and the benchmarks rest on."""

from __future__ import annotations

from qsg.process.ledger import Counts, Ledger, payload


def filled(numbers: list[int], sent: int = 4) -> Ledger:
    ledger = Ledger(1)
    ledger.sent(0, sent)
    ledger.acknowledged(0, sent)
    for i, n in enumerate(numbers):
        ledger.arrived(payload(0, n, 1.0, 64), 2.0 + i)
    return ledger


def test_all_arrived_in_order_is_clean() -> None:
    counts = filled([1, 2, 3, 4]).counts()

    assert Counts(sent=4, acknowledged=4, received=4, ok=4) == counts
    assert counts.clean


def test_a_missing_message_is_lost() -> None:
    assert 1 == filled([1, 2, 4]).counts().lost


def test_an_unacknowledged_message_is_not_lost() -> None:
    ledger = Ledger(1)
    ledger.sent(0, 2)
    ledger.acknowledged(0, 1)
    ledger.arrived(payload(0, 1, 0.0, 64), 1.0)

    assert ledger.counts().clean


def test_a_second_arrival_is_a_duplicate_and_not_out_of_order() -> None:
    counts = filled([1, 2, 3, 2, 4]).counts()

    assert (1, 0) == (counts.duplicated, counts.out_of_order)


def test_a_late_message_is_out_of_order() -> None:
    assert 1 == filled([1, 3, 2, 4]).counts().out_of_order


def test_what_a_getter_gave_back_is_counted_apart_and_is_clean() -> None:
    ledger = Ledger(1)
    ledger.sent(0, 2)
    ledger.acknowledged(0, 2)
    ledger.interrupted(2.0)
    ledger.arrived(payload(0, 2, 1.0, 64), 3.0)
    ledger.arrived(payload(0, 1, 1.0, 64), 4.0)
    counts = ledger.counts()

    assert (1, 0, True) == (counts.returned, counts.out_of_order, counts.clean)
    assert 2 == counts.plus(counts).returned


def test_foreign_damaged_and_never_sent_messages_are_unexpected() -> None:
    ledger = filled([1, 2, 3, 4])
    damaged = bytearray(payload(0, 1, 1.0, 64))
    damaged[-1] ^= 1
    for body in (b"", b"x" * 64, bytes(damaged), payload(0, 9, 1.0, 64), payload(7, 1, 1.0, 64)):
        ledger.arrived(body, 9.0)

    assert 5 == ledger.counts().unexpected


def test_gap_and_worst_wait_belong_to_their_window() -> None:
    ledger = Ledger(1)
    ledger.sent(0, 4)
    for n, (sent, at) in enumerate([(0.0, 0.1), (1.0, 1.1), (1.2, 3.0), (3.2, 3.3)], 1):
        ledger.arrived(payload(0, n, sent, 64), at)

    assert abs(1.8 - ledger.gap_s(1.15, 2.0)) < 1e-9
    assert abs(0.1 - ledger.gap_s(3.05, 9.0)) < 1e-9, "a pause in the traffic is no gap"
    assert abs(1.8 - ledger.worst_wait_s(2.9, 3.1)) < 1e-9
    assert ledger.worst_wait_s(1.15, 2.9) == 0.0, "what is still under way waits for what comes next"
    assert abs(0.1 - ledger.worst_wait_s(3.1, 9.0)) < 1e-9
