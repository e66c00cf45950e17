"""Traceparents: OpenTelemetry's own parser is the second judge of which ones count."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pgbus_gevent.core.events import Signal, Traced
from pgbus_gevent.core.rows import Row
from pgbus_gevent.core.traces import report, sampled

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
digits = st.text("0123456789abcdefg", min_size=30, max_size=33)


@given(st.builds("{}-{}-{}-{}".format, st.sampled_from(["00", "cc", "ff", "0"]), digits, digits.map(lambda d: d[:16]),
                 st.sampled_from(["00", "01", "02", "03", "0g", "1"])))  # fmt: skip
@example(GOOD)
@example(GOOD[:-1] + "0")
@example(f"00-{'0' * 32}-b7ad6b7169203331-01")
@example(f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01")
@example("ff" + GOOD[2:])
@example(GOOD.upper())
@example(GOOD + "\n")
@example("")
def test_a_traceparent_counts_if_opentelemetry_takes_it_for_a_sampled_one(text: str) -> None:
    found = trace.get_current_span(TraceContextTextMapPropagator().extract({"traceparent": text})).get_span_context()
    # OpenTelemetry strips white space, which a header may have around it and a setting may not.
    expected = found.is_valid and found.trace_flags.sampled and text == text.strip()
    assert sampled(text) == (text if expected else None)


@pytest.mark.parametrize("value", [None, 1, GOOD.encode(), [GOOD]])
def test_only_text_is_one(value: object) -> None:
    assert sampled(value) is None


def test_only_new_messages_with_a_sampled_trace_are_reported() -> None:
    signal: Signal[Traced] = Signal()
    found: list[Traced] = []
    signal.subscribe(found.append)
    rows = [
        Row(n, None, "x", None, None, n - 1, 5.0, text) for n, text in ((1, GOOD), (2, None), (3, "bad"), (4, GOOD))
    ]
    report(signal, "orders", rows, 1)
    assert found == [Traced("orders", 4, GOOD, 5.0)]
