"""Consumption records: which messages of a segment are gone, claimed, and how often they were backed out.

Owns the meaning of `q/<queue>/c/<suffix>`; a missing record means that nothing of the segment was touched.
Invariant: an entry is handed out only when it is neither gone nor claimed by a living incarnation; a claim of a void incarnation is
dropped only in a unit that compares that incarnation (`dead_compares`). While a segment's header exists its record is never deleted
again, so *absent* cannot come back; record, header and bodies go together, in the unit that takes the last entries.
Does not guarantee that the segment exists: every unit here also compares the header's create revision (`exists`).

The functions that end in `_change` build the `apply` of a `Change` on the record: pure, callable several times, refusing with a `Refusal`
(`CHANGED_MEANWHILE`) what no longer holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.records import Damaged, read_record
from qsg.store.contract import Compare, Delete, Relation, Target, created_at

Apply = Callable[[bytes | None], bytes | None]
Holder = tuple[str, int]
"""(member, incarnation)."""


class LastEntries(Refusal):
    """The entries are the last of their segment (`last`), or no longer are: build the unit anew accordingly."""

    def __init__(self, last: bool) -> None:
        super().__init__(Reason.CHANGED_MEANWHILE, "the segment ends with these entries" if last else "other entries remain")
        self.last = last


@dataclass(frozen=True, slots=True)
class Claimer:
    """Who claims: an incarnation of a member, for a unit of work."""

    member: str
    incarnation: int
    unit: bytes


def parse(value: bytes | None) -> pb.Consumption:
    return read_record(pb.Consumption, value) if value else pb.Consumption()


Entries = Collection[int] | int
"""Indexes, or a bitmap of them."""


ENTRIES_MAX = 1 << 16
"""More than any segment has: a bitmap is not made for what damage makes of an index."""


def bits(indexes: Iterable[int]) -> int:
    mask = 0
    for index in indexes:
        if index >= ENTRIES_MAX:
            raise Damaged(f"entry {index} of a segment")
        mask |= 1 << index
    return mask


def mask_of(entries: Entries) -> int:
    return entries if isinstance(entries, int) else bits(entries)


def iterate(mask: int) -> Iterator[int]:
    """Indexes of a bitmap, ascending, lazily."""
    digits = bin(mask)[:1:-1]
    found = digits.find("1")
    while found >= 0:
        yield found
        found = digits.find("1", found + 1)


def indexes_of(mask: int) -> list[int]:
    return list(iterate(mask))


def gone_mask(record: pb.Consumption) -> int:
    return int.from_bytes(record.gone, "little")


def set_gone(record: pb.Consumption, mask: int) -> None:
    record.gone = mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def claimed_mask(record: pb.Consumption, void: Collection[Holder] = ()) -> int:
    """Entries claimed by anyone but the `void` incarnations."""
    mask = 0
    for claim in record.claims:
        if (claim.member, claim.incarnation) not in void:
            mask |= bits(claim.entries)
    return mask


def free_mask(record: pb.Consumption, count: int, void: Collection[Holder] = ()) -> int:
    """Entries of a segment of `count` messages that are neither gone nor claimed by a living incarnation."""
    return ((1 << count) - 1) & ~gone_mask(record) & ~claimed_mask(record, void)


def void_holders(record: pb.Consumption, live: Collection[Holder]) -> frozenset[Holder]:
    """Incarnations that claim entries and are not among the live ones."""
    return frozenset((c.member, c.incarnation) for c in record.claims) - frozenset(live)


def dead_compares(holders: Iterable[Holder]) -> list[Compare]:
    """Hold while none of these incarnations is back: compare them wherever their claims are dropped."""
    return [Compare(keys.member(m), Target.CREATE, Relation.NOT_EQUAL, incarnation) for m, incarnation in sorted(holders)]


def exists(queue: str, priority: int, suffix: bytes, create_revision: int) -> Compare:
    return created_at(keys.header(queue, priority, suffix), create_revision)


def deletes(queue: str, priority: int, suffix: bytes, *, bodies_inline: bool) -> list[Delete]:
    """Removes a segment but for its consumption record, which its `Change` removes."""
    header = Delete(keys.header(queue, priority, suffix))
    return [header] if bodies_inline else [header, Delete(keys.body(queue, priority, suffix))]


def claim_change(claimer: Claimer, entries: Entries, count: int, void: Collection[Holder] = ()) -> Apply:
    """Claims free entries for a unit of work; claims of `void` incarnations are dropped."""
    wanted = mask_of(entries)

    def apply(value: bytes | None) -> bytes:
        record = parse(value)
        _require(wanted & ~free_mask(record, count, void) == 0, "another getter was faster")
        _drop_void(record, void)
        held = gathered(record, claimer)
        _replace(record, held, claimer, held.mask | wanted)
        return record.SerializeToString()

    return apply


def release_change(claimer: Claimer, entries: Entries, *, backed_out: bool) -> Apply:
    """Gives claimed entries back; `backed_out` raises their backout count. What is not claimed any more is left alone."""
    wanted = mask_of(entries)

    def apply(value: bytes | None) -> bytes:
        _require(value is not None, "the claim is gone")
        record = parse(value)
        held = gathered(record, claimer)
        _require(held.mask & wanted == wanted, "the claim is gone")
        _replace(record, held, claimer, held.mask & ~wanted)
        if backed_out:
            for index in iterate(wanted):
                record.backouts[index] += 1
        return record.SerializeToString()

    return apply


def count_change(entries: Entries) -> Apply:
    """Raises the backout count of entries whose claim was not in the record."""
    wanted = mask_of(entries)

    def apply(value: bytes | None) -> bytes:
        record = parse(value)
        _require(wanted & gone_mask(record) == 0, "the entries are gone")
        for index in iterate(wanted):
            record.backouts[index] += 1
        return record.SerializeToString()

    return apply


def gone_change(entries: Entries, count: int, *, last: bool, claimer: Claimer | None = None, void: Collection[Holder] = ()) -> Apply:
    """Marks entries gone: claimed ones of a unit of work, or (claimer None) free ones.

    With `last` these are all that is left and the record goes (the unit deletes the segment, see `deletes`); raises `LastEntries` when
    that is not so, or when it is so without `last`.
    """
    wanted = mask_of(entries)
    everything = (1 << count) - 1

    def apply(value: bytes | None) -> bytes | None:
        record = parse(value)
        if claimer is None:
            _require(wanted & ~free_mask(record, count, void) == 0, "another getter was faster")
        else:
            held = gathered(record, claimer)
            _require(wanted & ~held.mask == 0, "the claim is gone")
            _replace(record, held, claimer, held.mask & ~wanted)
        _drop_void(record, void)
        gone = gone_mask(record) | wanted
        if (gone == everything) != last:
            raise LastEntries(gone == everything)
        if last:
            return None
        set_gone(record, gone)
        for index in [i for i in record.backouts if wanted >> i & 1]:
            del record.backouts[index]
        return record.SerializeToString()

    return apply


def is_last(record: pb.Consumption, entries: Entries, count: int) -> bool:
    """These entries are all that is left of the segment."""
    return gone_mask(record) | mask_of(entries) == (1 << count) - 1


@dataclass(frozen=True, slots=True)
class Held:
    mask: int
    others: list[pb.Claim]


def gathered(record: pb.Consumption, claimer: Claimer) -> Held:
    """What a unit of work holds of a segment, and the claims of all the others."""
    mask, others = 0, []
    for claim in record.claims:
        if claim.unit == claimer.unit and claim.incarnation == claimer.incarnation and claim.member == claimer.member:
            mask |= bits(claim.entries)
        else:
            others.append(claim)
    return Held(mask, others)


def _claim(claimer: Claimer, mask: int) -> pb.Claim:
    return pb.Claim(member=claimer.member, incarnation=claimer.incarnation, unit=claimer.unit, entries=indexes_of(mask))


def _replace(record: pb.Consumption, held: Held, claimer: Claimer, mask: int) -> None:
    claims = [*held.others, *([_claim(claimer, mask)] if mask else [])]
    _set_claims(record, claims)


def _drop_void(record: pb.Consumption, void: Collection[Holder]) -> None:
    if not void:
        return
    _set_claims(record, [c for c in record.claims if (c.member, c.incarnation) not in void])


def _set_claims(record: pb.Consumption, claims: Iterable[pb.Claim]) -> None:
    kept = pb.Consumption(claims=claims)  # Copied before the old list is cleared: they may be part of it.
    del record.claims[:]
    record.claims.extend(kept.claims)


def _require(condition: bool, detail: str) -> None:
    if not condition:
        raise Refusal(Reason.CHANGED_MEANWHILE, detail)
