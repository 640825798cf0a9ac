"""Name resolution, as a table of what users define and what they get."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsg.rules.definitions import Queue
from qsg.rules.names import Names, resolve_get, resolve_put
from qsg.rules.reasons import Reason, Refusal

QUEUES = {
    q.name: q
    for q in (
        Queue(name="LOCAL"),
        Queue(name="CLOSED", put_enabled=False, get_enabled=False),
        Queue(name="A.LOCAL", type="alias", target="LOCAL"),
        Queue(name="A.CLOSED", type="alias", target="CLOSED"),
        Queue(name="A.SHUT", type="alias", target="LOCAL", put_enabled=False, get_enabled=False),
        Queue(name="A.REMOTE", type="alias", target="R.PLAIN"),
        Queue(name="A.NOTHING", type="alias", target="NO.SUCH"),
        Queue(name="A.A", type="alias", target="A.LOCAL"),
        Queue(name="A.LOOP", type="alias", target="A.LOOP"),
        Queue(name="R.PLAIN", type="remote", remote_queue="FAR", remote_queue_manager="R"),
        Queue(name="R.XMIT", type="remote", remote_queue="FAR", remote_queue_manager="R", transmission_queue="X.OTHER"),
        Queue(name="R.BADXMIT", type="remote", remote_queue="FAR", remote_queue_manager="R", transmission_queue="LOCAL"),
        Queue(name="R.NOXMIT", type="remote", remote_queue="FAR", remote_queue_manager="R", transmission_queue="NO.SUCH"),
        Queue(name="R.OWN", type="remote", remote_queue="LOCAL", remote_queue_manager="G"),
        Queue(name="R.LOST", type="remote", remote_queue="FAR", remote_queue_manager="LOST"),
        Queue(name="QM.ALIAS", type="remote", remote_queue_manager="R"),
        Queue(name="QM.ALIAS.XMIT", type="remote", remote_queue_manager="R2", transmission_queue="X.OTHER"),
        Queue(name="QM.SELF", type="remote", remote_queue_manager="X"),
        Queue(name="R", usage="transmission"),
        Queue(name="X.OTHER", usage="transmission"),
        Queue(name="X.CLOSED", usage="transmission", put_enabled=False),
        Queue(name="X.DEFAULT", usage="transmission"),
    )
}


def names(default: str = "") -> Names:
    return Names(QUEUES.get, frozenset({"X", "G"}), default, hop_limit=3)


@pytest.mark.parametrize(
    ("queue", "queue_manager", "default", "expected"),
    [
        pytest.param("LOCAL", "", "", ("LOCAL", None), id="local, blank queue manager"),
        pytest.param("LOCAL", "X", "", ("LOCAL", None), id="local, LOCAL NAME"),
        pytest.param("LOCAL", "G", "", ("LOCAL", None), id="local, GROUP NAME"),
        pytest.param("A.LOCAL", "", "", ("LOCAL", None), id="alias"),
        pytest.param("A.REMOTE", "", "", ("R", ("FAR", "R")), id="alias of a remote definition"),
        pytest.param("R.PLAIN", "", "", ("R", ("FAR", "R")), id="transmission queue named after the target"),
        pytest.param("R.XMIT", "", "", ("X.OTHER", ("FAR", "R")), id="explicit transmission queue"),
        pytest.param("R.LOST", "", "X.DEFAULT", ("X.DEFAULT", ("FAR", "LOST")), id="default transmission queue"),
        pytest.param("ANY", "R", "", ("R", ("ANY", "R")), id="queue manager named as target"),
        pytest.param("ANY", "ELSEWHERE", "X.DEFAULT", ("X.DEFAULT", ("ANY", "ELSEWHERE")), id="unknown queue manager, default"),
        pytest.param("ANY", "QM.ALIAS", "", ("R", ("ANY", "R")), id="queue-manager alias"),
        pytest.param("ANY", "QM.ALIAS.XMIT", "", ("X.OTHER", ("ANY", "R2")), id="queue-manager alias with transmission queue"),
        pytest.param("LOCAL", "QM.SELF", "", ("LOCAL", None), id="queue-manager alias of ourselves"),
        pytest.param("NO.SUCH", "", "", Reason.UNKNOWN_OBJECT_NAME, id="unknown queue"),
        pytest.param("NO.SUCH", "QM.SELF", "", Reason.UNKNOWN_OBJECT_NAME, id="unknown queue behind an alias of ourselves"),
        pytest.param("ANY", "ELSEWHERE", "", Reason.UNKNOWN_REMOTE_Q_MGR, id="unknown queue manager"),
        pytest.param("ANY", "R.PLAIN", "", Reason.UNKNOWN_REMOTE_Q_MGR, id="a remote queue is no queue-manager alias"),
        pytest.param("R.OWN", "", "", Reason.UNKNOWN_REMOTE_Q_MGR, id="remote definition of ourselves"),
        pytest.param("QM.ALIAS", "", "", Reason.UNKNOWN_OBJECT_NAME, id="a queue-manager alias is no queue"),
        pytest.param("A.NOTHING", "", "", Reason.UNKNOWN_ALIAS_BASE_Q, id="alias of nothing"),
        pytest.param("A.A", "", "", Reason.ALIAS_BASE_Q_TYPE_ERROR, id="alias of an alias"),
        pytest.param("A.LOOP", "", "", Reason.ALIAS_BASE_Q_TYPE_ERROR, id="alias of itself"),
        pytest.param("R.BADXMIT", "", "", Reason.XMIT_Q_USAGE_ERROR, id="explicit transmission queue is none"),
        pytest.param("R.NOXMIT", "", "", Reason.UNKNOWN_XMIT_Q, id="explicit transmission queue missing"),
        pytest.param("ANY", "LOCAL", "", Reason.XMIT_Q_USAGE_ERROR, id="queue of the queue manager's name is no transmission queue"),
        pytest.param("R", "", "", Reason.XMIT_Q_USAGE_ERROR, id="put straight to a transmission queue"),
        pytest.param("ANY", "ELSEWHERE", "NO.SUCH", Reason.UNKNOWN_DEF_XMIT_Q, id="default missing"),
        pytest.param("ANY", "ELSEWHERE", "LOCAL", Reason.DEF_XMIT_Q_USAGE_ERROR, id="default is no transmission queue"),
        pytest.param("CLOSED", "", "", Reason.PUT_INHIBITED, id="put inhibited"),
        pytest.param("A.CLOSED", "", "", Reason.PUT_INHIBITED, id="put inhibited behind the alias"),
        pytest.param("A.SHUT", "", "", Reason.PUT_INHIBITED, id="alias put inhibited"),
        pytest.param("ANY", "X.CLOSED", "", Reason.PUT_INHIBITED, id="transmission queue put inhibited"),
    ],
)
def test_put(queue: str, queue_manager: str, default: str, expected: object) -> None:
    if isinstance(expected, Reason):
        with pytest.raises(Refusal) as refused:
            resolve_put(names(default), queue, queue_manager)
        assert refused.value.reason is expected
    else:
        resolved = resolve_put(names(default), queue, queue_manager)
        assert (resolved.queue.name, resolved.destination) == expected


@pytest.mark.parametrize(
    ("queue", "queue_manager", "expected"),
    [
        pytest.param("LOCAL", "", "LOCAL", id="local"),
        pytest.param("A.LOCAL", "G", "LOCAL", id="alias"),
        pytest.param("R", "", "R", id="transmission queue"),
        pytest.param("LOCAL", "R", Reason.UNKNOWN_OBJECT_Q_MGR, id="elsewhere"),
        pytest.param("NO.SUCH", "", Reason.UNKNOWN_OBJECT_NAME, id="unknown"),
        pytest.param("R.PLAIN", "", Reason.OPTIONS_ERROR, id="remote"),
        pytest.param("A.REMOTE", "", Reason.OPTIONS_ERROR, id="alias of remote"),
        pytest.param("CLOSED", "", Reason.GET_INHIBITED, id="get inhibited"),
        pytest.param("A.SHUT", "", Reason.GET_INHIBITED, id="alias get inhibited"),
    ],
)
def test_get(queue: str, queue_manager: str, expected: object) -> None:
    if isinstance(expected, Reason):
        with pytest.raises(Refusal) as refused:
            resolve_get(names(), queue, queue_manager)
        assert refused.value.reason is expected
    else:
        assert resolve_get(names(), queue, queue_manager).queue.name == expected


def test_hop_limit_stops_forwarding_but_not_arrival() -> None:
    assert resolve_put(names(), "ANY", "R", hops=2).destination == ("ANY", "R")
    assert resolve_put(names(), "LOCAL", "", hops=200).queue.name == "LOCAL"
    with pytest.raises(Refusal) as refused:
        resolve_put(names(), "ANY", "R", hops=3)
    assert refused.value.reason is Reason.HOP_LIMIT


SOME = ["A", "B", "C", "X", "G", "R"]
MAYBE = st.sampled_from(["", *SOME])
DEFINED = st.dictionaries(
    st.sampled_from(SOME),
    st.tuples(
        st.sampled_from(["local", "transmission", "alias", "remote", "qm alias"]), st.sampled_from(SOME), MAYBE, MAYBE, st.booleans()
    ),
)


def _queue(name: str, kind: str, target: str, manager: str, transmission: str, enabled: bool) -> Queue:
    match kind:
        case "alias":
            return Queue(name=name, type="alias", target=target, put_enabled=enabled, get_enabled=enabled)
        case "remote":
            return Queue(
                name=name,
                type="remote",
                remote_queue=target,
                remote_queue_manager=manager or "R",
                transmission_queue=transmission,
                put_enabled=enabled,
            )
        case "qm alias":
            return Queue(
                name=name, type="remote", remote_queue_manager=manager or "R", transmission_queue=transmission, put_enabled=enabled
            )
    usage: Literal["normal", "transmission"] = "transmission" if kind == "transmission" else "normal"
    return Queue(name=name, usage=usage, put_enabled=enabled, get_enabled=enabled)


@given(DEFINED, st.sampled_from(SOME), MAYBE, MAYBE, st.integers(0, 5))
def test_whatever_is_defined_a_name_leads_to_a_local_queue_or_is_refused(
    defined: dict[str, tuple[str, str, str, str, bool]], queue: str, queue_manager: str, default: str, hops: int
) -> None:
    queues = {name: _queue(name, *how) for name, how in defined.items()}
    looked: list[str] = []

    def lookup(name: str) -> Queue | None:
        looked.append(name)
        return queues.get(name)

    known = Names(lookup, frozenset({"X", "G"}), default, hop_limit=3)
    try:
        found = resolve_put(known, queue, queue_manager, hops=hops)
    except Refusal as refusal:
        assert refusal.reason
    else:
        assert found.queue.type == "local" and found.queue.put_enabled and all(passed.put_enabled for passed in found.path)
        assert (found.destination is not None) == (found.queue.usage == "transmission")
        if found.destination is not None:
            assert all(found.destination) and hops < 3
    try:
        got = resolve_get(known, queue, queue_manager)
    except Refusal as refusal:
        assert refusal.reason
    else:
        assert got.queue.type == "local" and got.queue.get_enabled and got.destination is None
    assert len(looked) <= 12, "resolution takes a bounded number of look-ups"
