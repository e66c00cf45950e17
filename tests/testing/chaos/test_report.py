"""The report counts what was wrong, and delays, for the fault to which they belong."""

from __future__ import annotations

from xml.etree import ElementTree

from pgbus_gevent.testing.chaos import plot, report
from pgbus_gevent.testing.chaos.conductor import Options, Outcome, Window
from pgbus_gevent.testing.chaos.journal import History
from pgbus_gevent.testing.chaos.judge import Finding

CALM, BROKEN = Window("calm", 100.0), Window("clients-cut", 110.0, 115.0, 116.0)


def outcome(*findings: Finding) -> Outcome:
    """Three messages: one in the calm, one while something was broken, and one that the fault held up."""
    one = History(0, 0, "chaos:plain-0")
    for message, sent, received in ((1, 101.0, 101.5), (2, 112.0, 118.0), (3, 109.9, 112.9)):
        one.message(message * 10, message, sent, received)
    one.mark(112.5, "told", event="shutdown", reason="restart")
    committed = {1: 101.0, 2: 112.0, 3: 109.9}
    return Outcome(Options(seed=7), [CALM, BROKEN], [one], list(findings), committed)


def test_messages_and_delays_belong_to_a_window() -> None:
    calm, broken = report.lines_of(outcome())
    assert (calm.committed, calm.delivered, calm.delays) == (2, 2, [0.5])
    assert (broken.committed, broken.delivered) == (1, 1)
    assert [round(delay, 3) for delay in broken.delays] == [6.0, 3.0]
    assert broken.recovered == 3.0
    assert broken.told == {"shutdown restart": 1}


def test_a_gap_that_the_next_fault_delays_belongs_to_the_loss_before() -> None:
    found = outcome()
    found.losses = [102.0, 130.0]
    found.histories[0].mark(113.0, "gap", reason="ahead", oldest=10)
    found.histories[0].mark(114.0, "gap", reason="expired", oldest=10)
    calm, broken = report.lines_of(found)
    assert calm.told == {"gap ahead": 1}
    assert broken.told == {"gap expired": 1, "shutdown restart": 1}


def test_a_repeated_message_counts_once_as_delivered() -> None:
    found = outcome()
    found.histories[0].message(10, 1, 101.0, 119.0)
    assert [line.delivered for line in report.lines_of(found)] == [2, 1]


def test_a_finding_is_in_the_text_and_in_the_json() -> None:
    found = outcome(Finding("lost", "chaos:plain-0", 0, 20, 2, 0.0))
    assert "wrong: lost: message 2 of chaos:plain-0, id 20, client 0" in report.text(found)
    value = report.as_json(found)
    assert value["total"]["lost"] == 1
    assert [line["lost"] for line in value["faults"]] == [0, 1]


def test_the_last_line_is_the_verdict() -> None:
    assert report.text(outcome()).splitlines()[-1] == "seed 7: 1 faults, 3 messages, 3 deliveries; nothing was wrong"
    found = outcome(Finding("lost", "chaos:plain-0", 0, 20, 2, 0.0))
    assert report.text(found).splitlines()[-1].endswith("; 1 times something was wrong")


def test_the_table_says_apart_what_was_wrong() -> None:
    found = outcome(
        *(Finding(kind, "chaos:plain-0", 0, 20, 2, 112.0) for kind in ("forbidden", "lost", "lost", "presence"))
    )
    head, _, calm, broken, all_of_them = (
        [cell.strip() for cell in row.split("|")[1:-1]] for row in report.markdown(found).split("\n")
    )
    kinds = ("lost", "repeated", "out of order", "forbidden", "otherwise wrong")
    assert [[row[head.index(kind)] for kind in kinds] for row in (calm, broken, all_of_them)] == [
        ["0"] * 5,
        ["2", "0", "0", "1", "1"],
        ["2", "0", "0", "1", "1"],
    ]
    assert {len(row) for row in (head, calm, broken, all_of_them)} == {14}


def test_the_plot_has_a_row_for_each_fault() -> None:
    tree = ElementTree.fromstring(plot.svg(outcome()))
    texts = ["".join(element.itertext()) for element in tree.iter() if element.tag.endswith("text")]
    assert {"calm", "clients-cut"} <= set(texts)
    assert "3 messages, 3 deliveries to 200 clients: 0 lost" in texts[0]
