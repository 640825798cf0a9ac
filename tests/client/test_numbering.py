"""The window of a producer's numbers, event by event."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qsg.client.numbering import Outcome, Settlement, Window


def window(last: int = 0, epoch: int = 1) -> Window[str]:
    made: Window[str] = Window()
    made.opened(epoch, last)
    return made


def test_numbers_are_consecutive() -> None:
    w = window(last=7)

    assert [w.send(count, "").first for count in (1, 3, 2)] == [8, 9, 12]


def test_answers_that_overtake_are_told_in_order() -> None:
    w = window()
    a, b = w.send(1, "a"), w.send(1, "b")

    assert w.answer(b, Outcome.DONE) == []
    assert w.answer(a, Outcome.DONE) == [a, b]
    assert w.last == 2


def test_a_refusal_sends_what_is_behind_it_again_under_its_numbers() -> None:
    w = window()
    a, b, c = w.send(2, "a"), w.send(1, "b"), w.send(1, "c")
    w.answer(a, Outcome.REFUSED)
    assert w.troubled
    assert not w.quiet
    w.answer(b, Outcome.GAP)
    w.answer(c, Outcome.GAP)

    assert w.quiet
    assert not w.must_ask
    assert [(f.value, f.outcome) for f in w.settle()] == [("a", Outcome.REFUSED), ("b", Outcome.GAP), ("c", Outcome.GAP)]
    assert w.send(1, "b").first == 1


def test_unknown_is_settled_by_the_record() -> None:
    w = window()
    w.answer(w.send(1, "a"), Outcome.UNKNOWN)
    assert w.must_ask

    assert w.opened(2, 1) is Settlement.KNOWN
    assert [f.outcome for f in w.settle()] == [Outcome.DONE]


def test_in_flight_frames_are_split_by_the_record() -> None:
    w = window()
    frames = [w.send(10, value) for value in "abc"]
    for frame in frames:
        w.answer(frame, Outcome.UNKNOWN)
    w.opened(2, 10)

    assert [f.outcome for f in w.settle()] == [Outcome.DONE, Outcome.GAP, Outcome.GAP]
    assert w.send(1, "b").first == 11


def test_records_that_are_not_ours() -> None:
    assert window(last=5).opened(1, 5) is Settlement.LOST
    assert window(last=5).opened(2, 4) is Settlement.LOST
    assert window(last=5).opened(1_700_000_000_000, 0) is Settlement.LOST
    assert window(last=5).opened(2, 6) is Settlement.FOREIGN
    assert window(last=5).opened(3, 5) is Settlement.FOREIGN


def test_what_was_answered_needs_no_record() -> None:
    w = window(last=5)
    a, b, c = w.send(1, "a"), w.send(1, "b"), w.send(1, "c")
    w.answer(a, Outcome.UNKNOWN)
    w.answer(b, Outcome.DONE)
    w.answer(c, Outcome.GAP)

    assert w.opened(1_700_000_000_000, 0) is Settlement.LOST
    assert [f.outcome for f in w.settle()] == [Outcome.GAP, Outcome.DONE, Outcome.GAP]

    w = window(last=5, epoch=9)
    w.answer(w.send(1, "a"), Outcome.GAP)
    assert w.opened(3, 70) is Settlement.LOST
    assert [f.outcome for f in w.settle()] == [Outcome.GAP]


def test_an_unanswered_open_request_of_ours_accounts_for_one_raise() -> None:
    w = window(last=5)
    w.opens_unanswered = 2

    assert w.opened(3, 5) is Settlement.KNOWN
    assert w.opens_unanswered == 1
    assert w.opened(5, 5) is Settlement.KNOWN
    assert w.opens_unanswered == 0
    assert w.opened(7, 5) is Settlement.FOREIGN


@given(st.data())
def test_against_a_record_nothing_is_done_twice_or_never(data: st.DataObject) -> None:
    """Any mixture of answers, lost answers and refusals: each value is done once, in order, or refused."""
    w = window()
    epoch, last = 1, 0
    waiting = [f"v{i}" for i in range(data.draw(st.integers(1, 12)))]
    done: list[str] = []
    told: list[str] = []
    refused: set[str] = set()
    while waiting or w.frames:
        while waiting and len(w.frames) < 4 and not w.troubled:
            frame = w.send(data.draw(st.integers(1, 3)), waiting.pop(0))
            fate = data.draw(st.sampled_from(["ok", "ok", "lost before", "lost after", "refuse"]))
            if frame.first != last + 1:
                outcome = Outcome.GAP
            elif fate == "refuse":
                outcome = Outcome.REFUSED
                refused.add(frame.value)
            elif fate == "lost before":
                outcome = Outcome.UNKNOWN
            else:
                last = frame.last
                done.append(frame.value)
                outcome = Outcome.DONE if fate == "ok" else Outcome.UNKNOWN
            frame.outcome = outcome
        for frame in list(w.frames):
            told += [f.value for f in w.answer(frame, frame.outcome)]
        if w.troubled:
            if w.must_ask:
                epoch += 1
                assert w.opened(epoch, last) is Settlement.KNOWN
            again = []
            for frame in w.settle():
                if frame.outcome is Outcome.DONE:
                    told.append(frame.value)
                elif frame.outcome is Outcome.GAP:
                    again.append(frame.value)
            waiting[:0] = again

    assert told == done
    assert len(set(done)) == len(done)
    assert sorted(done + list(refused)) == sorted(set(done) | refused)
