"""The labels of a ring: which message is the next one for a client, as a search through all messages finds it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pgbus_gevent.core.ring_labels import RingLabels

LABELS = st.sampled_from([None, "a", "b", "c"])


@given(
    messages=st.lists(LABELS, max_size=30),
    dropped=st.integers(0, 30),
    cursor=st.integers(0, 31),
    labels=st.sets(st.sampled_from("abcdefgh")),
)
def test_it_agrees_with_a_search(messages: list[str | None], dropped: int, cursor: int, labels: set[str]) -> None:
    ring = RingLabels()
    kept = list(enumerate(messages, 1))
    for id, label in kept:
        ring.add(id, label)
    gone, kept = kept[:dropped], kept[dropped:]
    if gone:
        ring.drop(gone[-1][0], {label for _, label in gone if label})
    above = [(id, label) for id, label in kept if id > cursor]
    assert ring.next_above(cursor, labels) == next(
        (id for id, label in above if label is None or label in labels), None
    )
    assert ring.everybody_above(cursor) == any(label is None for _, label in above)
    assert ring._by_label.keys() == {label for _, label in kept if label}
