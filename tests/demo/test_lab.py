"""The lab over HTTP: which posts are allowed, what they publish, and an answer that any process writes, once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import bottle
import pytest
from demo_parts import running_demo
from program_parts import program
from raw_http import Answer, ask
from site_parts import Site
from support import until
from wsgi_parts import Answer as WsgiAnswer
from wsgi_parts import call

from pgbus_gevent import Bus, Subscriber
from pgbus_gevent.demo import answers, lab, visitors
from pgbus_gevent.demo.answers import TOPICS, Writer
from pgbus_gevent.demo.rates import Pace, Rates
from pgbus_gevent.testing.databases import TestDatabases

TAB = "0123456789abcdef01234567"
JSON = "application/json"
CREATED = 201
PAUSE = 0.3
"""Seconds between two questions. More often, a visitor may not ask."""


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with running_demo(pgbus_databases.make()) as site:
        yield site


@pytest.fixture
def post(site: Site) -> Callable[..., Answer]:
    def post(path: str, body: Any, **headers: str) -> Answer:
        text = body if isinstance(body, (str, bytes)) else json.dumps(body)
        return ask(site.port, path, "POST", text, **{"Content_Type": JSON, **headers})

    return post


def attributes(site: Site, path: str = "/lab") -> dict[str, str]:
    """The data that the page gives to its script."""
    page = ask(site.port, path).body.decode()
    (body,) = re.findall(r"<body ([^>]*)>", page)
    return dict(re.findall(r'data-([a-z-]+)="([^"]*)"', body))


# pages ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/lab"])
def test_a_page_has_nothing_in_it_that_its_policy_forbids(site: Site, path: str) -> None:
    answer = ask(site.port, path)
    policy = answer.headers["content-security-policy"]
    assert answer.status == 200 and "default-src 'none'" in policy and "unsafe" not in policy
    page = answer.body.decode()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", page)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and not [source for source in sources if source.startswith(("//", "http"))]
    assert {"./", "lab", "docs/README.md", "/pgbus/console"} <= set(sources)


def test_the_first_visitor_finds_messages_and_an_answer(pgbus_database: str) -> None:
    with running_demo(pgbus_database) as site:
        for _ in range(2):
            assert attributes(site)["since"] == "0"
        found = site.bus.stream(lab.STREAM).read_after(0)
        assert [(message.data, message.visible_to) for message in found] == list(lab.WELCOME)
        until(lambda: len(words(site.bus)) > 3, "an answer is being written")
        with site.bus.transaction() as cursor:
            cursor.execute("delete from pgbus.messages where stream = %s", (lab.STREAM,))  # as the retention does
        attributes(site)
        assert len(site.bus.stream(lab.STREAM).read_after(0)) == len(lab.WELCOME)


def test_the_lab_begins_with_the_newest_messages(site: Site) -> None:
    ids = [site.bus.stream(lab.STREAM).broadcast(f"{n}") for n in range(lab.SHOWN + 3)]
    found = attributes(site)
    assert found["since"] == str(ids[2]) and found["watermark"] == str(ids[-1])


def test_while_the_database_is_away_the_lab_says_so() -> None:
    bus = Bus("postgresql://127.0.0.1:1/nothing?connect_timeout=1", secret="a secret for tests alone", migrate=False)
    app = bottle.Bottle()
    lab.add_lab(app, bus, Writer(bus), Rates(), Rates())
    seen: list[str] = []
    app({"REQUEST_METHOD": "GET", "PATH_INFO": "/lab"}, lambda status, headers, *more: seen.append(status))
    assert seen[0].startswith("503")


def test_a_visitor_cannot_ask_for_more_than_the_bound_and_others_still_can() -> None:
    bus = Bus("postgresql://127.0.0.1:1/nothing?connect_timeout=1", secret="a secret for tests alone", migrate=False)
    app = bottle.Bottle()
    # However long this process stands still, there are never more. What is let in needs the database, which is away.
    lab.add_lab(app, bus, Writer(bus), Rates(), Rates(Pace(2, 0.001), Pace(9, 0.001)))

    def missed(address: str = "192.0.2.1") -> WsgiAnswer:
        return call(app, "GET", "/lab/missed", REMOTE_ADDR=address)

    def answered(form: str = '{"topic": "sea"}', address: str = "192.0.2.1") -> WsgiAnswer:
        body = form.encode()
        sent = {"CONTENT_TYPE": JSON, "CONTENT_LENGTH": str(len(body)), "wsgi.input": BytesIO(body)}
        return call(app, "POST", "/lab/answer", REMOTE_ADDR=address, **sent)

    assert answered('{"topic": "nothing"}').status == 400, "what is refused anyway does not count"
    assert [missed().status, answered().status] == [503, 503]
    for refused in (missed(), answered(), answered("{}")):
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        assert refused.body == b"too fast: at most 0.001 questions a second, from one address"
    assert [missed("192.0.2.2").status, answered(address="192.0.2.2").status] == [503, 503]


# allowed posts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "none"},
        {"Sec_Fetch_Site": "cross-site", "Origin": "http://127.0.0.1:PORT"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "null"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/lab/publish", "/lab/answer"])
def test_a_page_of_another_site_cannot_post(
    site: Site, post: Callable[..., Answer], path: str, headers: dict[str, str]
) -> None:
    head = site.bus.stream(lab.STREAM).last_id()
    headers = {name: value.replace("PORT", str(site.port)) for name, value in headers.items()}
    assert post(path, {"text": "evil", "topic": "sea"}, **headers).status == 403
    assert site.bus.stream(lab.STREAM).last_id() == head


@pytest.mark.parametrize(
    "headers", [{"Sec_Fetch_Site": "same-origin"}, {"Origin": "http://127.0.0.1:PORT"}, {}], ids=str
)
def test_our_own_page_may_post_and_so_may_programs(
    site: Site, post: Callable[..., Answer], headers: dict[str, str]
) -> None:
    headers = {name: value.replace("PORT", str(site.port)) for name, value in headers.items()}
    assert post("/lab/publish", {"text": "good"}, **headers).status == CREATED


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_form_of_another_site_cannot_post(post: Callable[..., Answer], kind: str) -> None:
    assert post("/lab/publish", {"text": "evil"}, Content_Type=kind).status == 415


# publishing ----------------------------------------------------------------------------------------------------------


def test_a_posted_text_is_in_the_stream(site: Site, post: Callable[..., Answer]) -> None:
    form = {"text": " <b>é</b> ", "event": "note", "audience": "admins", "exclude": TAB}
    answer = post("/lab/publish", form)
    id = json.loads(answer.body)["id"]
    (message,) = site.bus.stream(lab.STREAM).read_after(id - 1, 1)
    assert (message.id, message.data, message.event) == (id, "<b>é</b>", "note")
    assert (message.visible_to, message.exclude) == ("admins", TAB)


BAD: dict[str, tuple[Any, int]] = {
    "not JSON": ("{", 400),
    "not UTF-8": (b'{"text": "\xff"}', 400),
    "deep": ("[" * 4000, 400),
    "no object": ([], 400),
    "no text": ({}, 400),
    "an empty text": ({"text": "  "}, 400),
    "a text that is none": ({"text": 7}, 400),
    "a long text": ({"text": "x" * 501}, 400),
    "a NUL": ({"text": "a\0b"}, 400),
    "half a character": ('{"text": "\\ud800"}', 400),
    "a long event": ({"text": "x", "event": "e" * 61}, 400),
    "a reserved event": ({"text": "x", "event": "pgbus:shutdown"}, 400),
    "an event of two lines": ({"text": "x", "event": "a\nb"}, 400),
    "an event that is none": ({"text": "x", "event": ["a"]}, 400),
    "another audience": ({"text": "x", "audience": "everybody"}, 400),
    "an audience that is none": ({"text": "x", "audience": {"a": 1}}, 400),
    "an empty object for an audience": ({"text": "x", "audience": {}}, 400),
    "no list of excluded tabs": ({"text": "x", "exclude": []}, 400),
    "a number for an event": ({"text": "x", "event": 0}, 400),
    "not a tab": ({"text": "x", "exclude": "me"}, 400),
    "too much": ({"text": "x", "more": "y" * 5000}, 413),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_posts_are_refused_and_not_published(site: Site, post: Callable[..., Answer], name: str) -> None:
    head = site.bus.stream(lab.STREAM).last_id()
    body, status = BAD[name]
    answer = post("/lab/publish", body)
    assert answer.status == status and answer.body
    assert site.bus.stream(lab.STREAM).last_id() == head


def test_the_missed_messages_are_those_that_the_tab_would_have_got(site: Site, post: Callable[..., Answer]) -> None:
    head = site.bus.stream(lab.STREAM).last_id()
    forms = [{"text": "a"}, {"text": "b", "exclude": TAB}, {"text": "c", "audience": "admins"}]
    ids = [json.loads(post("/lab/publish", form).body)["id"] for form in forms]
    missed = json.loads(ask(site.port, f"/lab/missed?after={head}&tab={TAB}").body)
    assert (missed["ids"], missed["watermark"]) == ([ids[0], ids[2]], ids[2])
    assert ask(site.port, "/lab/missed?after=x").status == 400


# audiences -----------------------------------------------------------------------------------------------------------


def test_only_admins_see_messages_for_admins(site: Site, post: Callable[..., Answer]) -> None:
    with (
        site.watch("demo%3Alab", "as=ada") as ada,
        site.watch("demo%3Alab", "as=bob") as bob,
        site.watch("demo%3Alab") as nobody,
    ):
        for client in (ada, bob, nobody):
            client.next("pgbus:connected")
        post("/lab/publish", {"text": "for admins", "audience": "admins"})
        post("/lab/publish", {"text": "for all"})
        assert [ada.next().data, ada.next().data] == ["for admins", "for all"]
        assert (bob.next().data, nobody.next().data) == ("for all", "for all")


@pytest.mark.parametrize("query", ["", "as=eve", "as=", "tab=" + TAB, "as=" + "&as=" * 300, "as=%ff"])
def test_a_visitor_that_is_not_a_user_is_let_in_without_an_identity(query: str) -> None:
    assert visitors.authorize({"QUERY_STRING": query}, "demo:lab") is True


def test_a_tab_is_a_member_under_another_name_than_its_id() -> None:
    found = visitors.authorize({"QUERY_STRING": f"as=ada&tab={TAB}"}, "demo:here")
    assert isinstance(found, Subscriber) and found.member and found.member not in TAB
    assert found.context["admin"] is True and len(found.context["presence"]["name"].split()) == 2
    other = visitors.authorize({"QUERY_STRING": "as=bob&tab=../../etc"}, "demo:here")
    assert isinstance(other, Subscriber) and other.member is None and other.context["admin"] is False


def test_the_visitors_are_listed(site: Site) -> None:
    with site.watch("demo%3Ahere", f"as=ada&tab={TAB}"):
        until(lambda: json.loads(ask(site.port, "/demo/here.json").body)["members"], "it is there")
        found = json.loads(ask(site.port, f"/demo/here.json?tab={TAB}").body)
        assert found["you"] in [member["member"] for member in found["members"]]
        assert TAB not in json.dumps(found)


# answers -------------------------------------------------------------------------------------------------------------


def words(bus: Bus) -> list[tuple[int, str]]:
    """The published words of the newest answer, with their places."""
    found: list[tuple[int, str]] = []
    for message in bus.stream(answers.STREAM):
        if message.event == "answer.start":
            found = []
        elif message.event == "answer.word":
            told = json.loads(message.data)
            found.append((told["at"], told["text"]))
    return found


def ask_for(bus: Bus, topic: str) -> bool:
    with bus.transaction() as cursor:
        answers.prepare(cursor)
        return answers.start(cursor, topic)


def finished(bus: Bus) -> bool:
    """Whether no answer is being written."""
    with bus.transaction() as cursor:
        answers.prepare(cursor)
        found = answers.latest(cursor)
    return found is None or found.finished


def hold_the_lease(bus: Bus) -> None:
    """Make the lease of the last step a minute longer, if it has one, because this process may stand still for some seconds."""
    with bus.transaction() as cursor:
        cursor.execute("update demo_answers set leased_until = leased_until + interval '1 min'")


def test_an_answer_that_is_asked_for_twice_is_written_once(site: Site, post: Callable[..., Answer]) -> None:
    until(
        lambda: post("/lab/answer", {}) and finished(site.bus),
        "the one that a visit has begun is finished",
        pause=PAUSE,
    )
    found = [post("/lab/answer", {"topic": topic}).status for topic in ("woods", "woods", "sea")]
    assert found == [201, 200, 200]
    whole = list(enumerate(TOPICS["woods"].words))
    until(lambda: words(site.bus) == whole, "it is whole")


def test_a_page_in_the_middle_of_an_answer_begins_with_its_first_message(
    site: Site, post: Callable[..., Answer]
) -> None:
    until(lambda: post("/lab/answer", {"topic": "late"}).status == CREATED, "the one before is finished", pause=PAUSE)
    until(lambda: len(words(site.bus)) > 3, "it has begun")
    found = attributes(site)
    first, *_ = site.bus.stream(answers.STREAM).read_after(int(found["answer-since"]))
    assert first.event == "answer.start" and json.loads(first.data)["topic"] == "late"
    assert int(found["answer-watermark"]) > (first.id or 0)
    until(lambda: len(words(site.bus)) == len(TOPICS["late"].words), "it is finished")


@pytest.mark.parametrize("topic", ["nothing", "", 7, ["sea"]])
def test_there_are_no_other_questions(post: Callable[..., Answer], topic: Any) -> None:
    assert post("/lab/answer", {"topic": topic}).status == 400


def test_one_of_two_writers_writes_and_the_other_takes_over(pgbus_bus: Bus) -> None:
    assert ask_for(pgbus_bus, "sea") and not ask_for(pgbus_bus, "woods")
    one, other = Writer(pgbus_bus, pace=0.01), Writer(pgbus_bus, pace=0.01)
    assert one.step() and one.step()
    hold_the_lease(pgbus_bus)
    assert not other.step()
    with pgbus_bus.transaction() as cursor:
        cursor.execute("update demo_answers set leased_until = now() - interval '1 s'")
    assert other.step()
    hold_the_lease(pgbus_bus)
    assert not one.step()
    other.wake()
    other.wake()
    until(lambda: len(words(pgbus_bus)) > 10, "it is written")
    other.stop()
    other.stop()
    one.wake()  # at once, because a writer that stops ends its lease
    whole = list(enumerate(TOPICS["sea"].words))
    until(lambda: words(pgbus_bus) == whole, "it is whole")
    one.stop()
    assert [message.event for message in pgbus_bus.stream(answers.STREAM)].count("answer.end") == 1


def test_a_word_that_could_not_be_counted_is_not_published(pgbus_bus: Bus) -> None:
    ask_for(pgbus_bus, "sea")
    with pgbus_bus.transaction() as cursor:
        cursor.execute("alter table demo_answers add constraint demo_few check (written < 2)")
    writer = Writer(pgbus_bus, pace=0.01)
    writer.wake()
    until(lambda: len(words(pgbus_bus)) == 1, "the first word")
    with pgbus_bus.transaction() as cursor:
        cursor.execute("alter table demo_answers drop constraint demo_few")
        cursor.execute("update demo_answers set leased_until = null")
    until(lambda: writer.wake() or len(words(pgbus_bus)) > 5, "it goes on")  # type: ignore[func-returns-value]
    writer.stop()
    found = words(pgbus_bus)
    assert found == list(enumerate(TOPICS["sea"].words))[: len(found)]


# requests from other names


@pytest.fixture(scope="module")
def local_port(pgbus_databases: TestDatabases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The application of ``serve`` at loopback, without a user's application."""
    url = pgbus_databases.make_empty()
    with program("-m", "pgbus_gevent.serve", database_url=url, cwd=tmp_path_factory.mktemp("demo")) as serving:
        until(lambda: serving.get("/lab").status == 200, "the lab is there")
        yield serving.port


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "LOCALHOST", "demo.localhost", "127.0.0.1:1", "127.1.2.3", "[::1]:80"]
)
def test_the_machine_has_several_names(host: str, local_port: int) -> None:
    assert ask(local_port, "/lab", Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "rebound.example",
        "rebound.example:8080",
        "127.0.0.1.rebound.example",
        "localhost.example",
        "evillocalhost",
        "10.0.0.1",
        "[2001:db8::1]:80",
        "8080",
    ],
)
@pytest.mark.parametrize(
    ("path", "method"), [("/", "GET"), ("/lab", "GET"), ("/lab/missed?after=0", "GET"), ("/lab/publish", "POST")]
)
def test_a_demo_at_loopback_is_for_no_other_name(host: str, path: str, method: str, local_port: int) -> None:
    # As after DNS rebinding: to the browser, the page and this server have one origin.
    headers = {
        "Host": host,
        "Origin": f"http://{host}",
        "Sec_Fetch_Site": "same-origin",
        "Content_Type": "application/json",
    }
    answer = ask(local_port, path, method, b'{"text": "x"}' if method == "POST" else None, **headers)
    assert answer.status == 421 and b"localhost" in answer.body


def test_a_demo_on_all_addresses_answers_to_any_name(pgbus_database: str) -> None:
    with running_demo(pgbus_database) as site:
        assert ask(site.port, "/lab", Host="demo.example").status == 200
