"""The bound on the messages of visitors."""

from __future__ import annotations

from pgbus_gevent.demo import rates
from pgbus_gevent.demo.rates import Pace, Rates


def test_an_address_has_a_burst_and_then_a_pace() -> None:
    now = [100.0]
    found = Rates(Pace(3, 2.0), Pace(100, 100.0), clock=lambda: now[0])
    assert [found.admit("192.0.2.1") for _ in range(4)] == [True, True, True, False]
    assert found.admit("192.0.2.2"), "another address has its own"
    now[0] += 0.4
    assert not found.admit("192.0.2.1")
    now[0] += 0.1  # what was refused has cost nothing
    assert [found.admit("192.0.2.1") for _ in range(2)] == [True, False]
    now[0] += 1000
    assert [found.admit("192.0.2.1") for _ in range(4)] == [True, True, True, False]


def test_all_addresses_together_have_a_pace_too() -> None:
    now = [0.0]
    found = Rates(Pace(10, 1.0), Pace(5, 1.0), clock=lambda: now[0])
    assert [found.admit(f"192.0.2.{number}") for number in range(7)] == [True] * 5 + [False] * 2
    now[0] += 1
    assert [found.admit(f"192.0.2.{number}") for number in range(2)] == [True, False]


def test_a_network_of_ipv6_counts_as_one() -> None:
    found = Rates(Pace(1, 1.0), Pace(9, 1.0), clock=lambda: 0.0)
    assert [found.admit(address) for address in ("2001:db8::1", "2001:db8::2", "2001:db8:1::1")] == [True, False, True]


def test_it_does_not_grow_without_bound() -> None:
    found = Rates(Pace(1, 1.0), Pace(9, 1.0), clock=lambda: 0.0)
    for number in range(2 * rates.REMEMBERED):
        found.admit(f"10.0.{number >> 8}.{number & 255}")
    assert len(found._sources) == rates.REMEMBERED
