"""Every example, run as its reader would run it, with one round trip through each."""

from __future__ import annotations

import html
import json
import re
import signal
import tokenize
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from urllib.parse import urlencode, urlsplit

import gevent
import pytest
from page_parts import block_of
from program_parts import PATIENCE, ROOT, Program, program, tag_in
from raw_http import ask
from support import until

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.sse_parser import ParsedFrame
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient

FORM = "application/x-www-form-urlencoded"

EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if not path.name.startswith("test_"))


def orders(example: Program, bus: Bus) -> None:
    """A page that was being made while orders came is brought up to date, and stays so."""
    assert "a plum cake" in example.page(), "the page is not empty"
    with bus.transaction() as cursor:
        cursor.execute("truncate orders restart identity")
    evil = "</script><b>tea</b>"
    assert example.post("/orders", item=evil).status == 303
    slow = gevent.spawn(example.page, "/?slow=0.5")
    count = 1
    while not slow.ready():
        assert example.post("/orders", item="cake").status == 303
        count += 1
    # This one comes after the page was made in any case, however long this process stood still before.
    assert example.post("/orders", item="cake").status == 303
    count += 1
    page = slow.get()
    assert evil not in page
    on_page = json.loads(re.findall(r"const order of (\[.*\])\) show", page, re.DOTALL)[0])
    assert on_page[0] == {"id": 1, "item": evil, "state": "open"}
    with example.watch(*tag_in(page)) as client:
        streamed = [json.loads(client.next("order", PATIENCE).data) for _ in range(count - len(on_page))]
        assert streamed and [order["id"] for order in on_page + streamed] == [*range(1, count + 1)]

        assert example.post("/orders/1/pay").status == 303
        assert json.loads(client.next("order", PATIENCE).data) == {"id": 1, "item": evil, "state": "paid"}
        # What fails is neither done nor told.
        assert example.post(f"/orders/{count + 1}/pay").status == 404
        assert example.post("/orders", item=" ").status == 400
        assert example.post("/orders", item="milk").status == 303
        assert json.loads(client.next("order", PATIENCE).data)["item"] == "milk"


def departures(example: Program, bus: Bus) -> None:
    """The board is shown, and a message to a demo stream arrives."""
    assert "Departures" in example.page()
    with example.watch("/pgbus/streams/demo:hello") as client:
        id = bus.stream("demo:hello").broadcast("hello")
        frame = client.next(timeout=PATIENCE)
        assert (frame.id, frame.data) == (str(id), "hello")


def path_in(page: str) -> str:
    """Return the path of the one stream in a page."""
    (found,) = re.findall(r'<pgbus-stream-source[^>]* src="([^"]+)"', page)
    return html.unescape(found)


def said_by(client: StreamClient) -> Callable[[], list[ParsedFrame]]:
    return lambda: [frame for frame in client.frames if frame.event == "said"]


def chat(example: Program, bus: Bus) -> None:
    """A text reaches all but its author. Typing is shown and then hidden again. The people in a room are listed."""
    answer = example.get("/garden")
    cookie = answer.headers["set-cookie"].split(";")[0]
    path = path_in(answer.body.decode())
    assert path.endswith("?replay=50")
    example.page("/garden")
    (welcome,) = bus.stream("chat:garden")
    assert "Welcome to the garden" in welcome.data, "once, whoever comes"
    with bus.transaction() as cursor:
        cursor.execute("truncate pgbus.messages")
    assert example.get(path).status == 403, "a guest without a name may not follow the room"
    assert example.post("/garden/say", text="hello").status == 403

    def post(what: str, **fields: str) -> None:
        body = urlencode({"key": "k", **fields})
        given = ask(example.port, f"/garden/{what}", "POST", body, Content_Type=FORM, Cookie=cookie)
        assert given.status == 204

    with StreamClient(example.url, path, headers={"Cookie": cookie}) as mine:
        connection = json.loads(mine.next("pgbus:connected", PATIENCE).data)["connectionId"]
        with StreamClient(example.url, path, headers={"Cookie": cookie}) as other:
            other.next("pgbus:connected", PATIENCE)

            def shown() -> list[bool]:
                return [json.loads(frame.data)["typing"] for frame in other.frames if frame.event == "typing"]

            began = monotonic()
            for _ in range(10):
                post("typing", connection=connection)
            assert json.loads(other.next("typing", PATIENCE).data)["typing"] is True
            post("say", connection=connection, text="<b>hello</b>")
            # Ephemeral messages have no promised order against stored ones.
            until(lambda: not shown()[-1], "typing is hidden again")
            took = monotonic() - began
            assert len(shown()) < 5 + 2 * took, "ten keys make few messages"
            assert [json.loads(frame.data)["text"] for frame in until(said_by(other), "it is said")] == ["<b>hello</b>"]
            post("say", text="to all")
            assert json.loads(mine.next("said", PATIENCE).data)["text"] == "to all"
        names = until(lambda: json.loads(example.get("/garden/here").body)["names"], "one is there")
        assert len(names) == 1 and names[0].startswith("Guest ")
        assert json.loads(example.get("/lobby/here").body)["names"] == []
    with StreamClient(example.url, path, headers={"Cookie": cookie}) as late:
        assert [json.loads(late.next("said", PATIENCE).data)["text"] for _ in range(2)] == ["<b>hello</b>", "to all"]


def bakery(example: Program, bus: Bus) -> None:
    """A slow page is brought up to date. Each change is one message, with the row as on the page and the number of orders."""
    assert "a rye bread" in example.page(), "the page is not empty"
    with bus.transaction() as cursor:
        cursor.execute("truncate bakery restart identity")
    assert example.post("/orders", item="<b>rye</b>").status == 204
    for on_page in range(1, 6):
        slow = gevent.spawn(example.page, "/?slow=0.5")
        gevent.sleep(0.2)
        assert example.post("/orders", item=f"wheat {on_page}").status == 204
        page = slow.get()
        if (
            f"wheat {on_page}" not in page
        ):  # or the order came before the page's snapshot, because a process stood still
            break
    assert "&lt;b&gt;rye&lt;/b&gt;" in page and f"wheat {on_page}" not in page and f">{on_page} open<" in page
    with example.watch(*tag_in(page)) as client:
        early = client.next(timeout=PATIENCE)
        assert early.event == "message" and f"wheat {on_page}" in early.data and f"{on_page + 1} open" in early.data
        assert example.post("/orders/1/baking").status == 204
        data = client.next(timeout=PATIENCE).data
        assert '<turbo-stream action="replace" target="order-1">' in data and f"{on_page + 1} open" in data
        assert example.post("/orders/1/done").status == 204
        assert f"{on_page} open" in client.next(timeout=PATIENCE).data
        # What fails is neither done nor told.
        assert [example.post(path).status for path in ("/orders/1/baking", "/orders/99/done", "/orders/2/sold")] == [
            404
        ] * 3
        assert example.post("/orders", item=" ").status == 400
        assert example.post("/orders", item="last").status == 204
        assert "last" in client.next(timeout=PATIENCE).data
    assert "done" in example.page()


def assistant(example: Program, bus: Bus) -> None:
    """A page that is opened while the assistant writes gets the words before and after, each once."""
    conversation = urlsplit(example.get("/").headers["location"]).path
    path = path_in(example.page(conversation))
    with example.watch(path, 0) as first:
        assert words(first).startswith("An assistant whose answers")
    conversation = conversation.rpartition("/")[0] + "/another"  # without a first answer
    path = path_in(example.page(conversation))
    assert example.post(conversation, question="?").status == 400
    assert example.post(conversation, question="Why live in the woods?").status == 204
    with example.watch(path, 0) as first:
        first.next("word", PATIENCE)
        with example.watch(path, 0) as second:
            told = [words(client) for client in (first, second)]
            assert told[0] == told[1]
    assert told[0].startswith("I went to the woods because") and told[0].endswith(
        "\n\n— Henry David Thoreau, Walden (1854)"
    )


def words(client: StreamClient) -> str:
    """Return the text of the one answer of a stream. Each word must come at its place."""
    client.next("done", timeout=20)
    text = ""
    for frame in client.frames:
        if frame.event == "word":
            word = json.loads(frame.data)
            assert word["at"] == len(text)
            text += word["text"]
    return text


def table(example: Program, bus: Bus) -> None:
    """A change made by any session arrives, because PostgreSQL itself publishes it."""
    page = example.page()
    assert "psql &quot;$PGBUS_DATABASE_URL&quot;" in page and bus.settings.database_url not in page + example.log
    with example.watch(*tag_in(page)) as client:
        with bus.transaction() as cursor:
            cursor.execute("update stock set quantity = 0 where item = 'rice'; delete from stock where item = 'sugar'")
        one, other = json.loads(client.next(timeout=PATIENCE).data), json.loads(client.next(timeout=PATIENCE).data)
        assert (one["op"], one["old"]["quantity"], one["new"]["quantity"]) == ("update", 5, 0)
        assert (other["op"], other["old"]["item"], other["new"]) == ("delete", "sugar", None)
        assert example.post("/run/insert").status == 204
        assert json.loads(client.next(timeout=PATIENCE).data)["new"]["item"] == "tea"
        assert example.post("/run/drop").status == 404
    assert '"quantity":0' in example.page()


def wall(example: Program, bus: Bus) -> None:
    """A text is shown to visitors that come later."""
    assert example.post("/", text="<b>hello</b>").status == 204
    with example.watch(path_in(example.page())) as client:
        assert client.next(timeout=PATIENCE).data == "<b>hello</b>"
        assert client.next(timeout=PATIENCE).data.startswith("Welcome")
    example.page()
    assert len(list(bus.stream("wall"))) == 2, "once, whoever comes"


ROUND_TRIPS: dict[str, Callable[[Program, Bus], None]] = {
    "assistant.py": assistant,
    "bottle_app.py": wall,
    "bottle_orders.py": orders,
    "chat.py": chat,
    "departures.py": departures,
    "orders_turbo.py": bakery,
    "table_feed.py": table,
}


COMMANDS = {
    "assistant.py": block_of("examples/README.md", "assistant"),
    "bottle_app.py": block_of("examples/README.md", "wall"),
    "bottle_orders.py": block_of("examples/README.md", "shop"),
    "chat.py": block_of("examples/README.md", "chat"),
    "departures.py": block_of("examples/README.md", "departures"),
    "orders_turbo.py": block_of("examples/README.md", "bakery"),
    "table_feed.py": block_of("examples/README.md", "table"),
}


def test_each_example_has_its_round_trip_and_its_command() -> None:
    assert {path.name for path in EXAMPLES} == ROUND_TRIPS.keys() == COMMANDS.keys()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_example_runs_makes_its_round_trip_and_ends_at_a_signal(
    path: Path, pgbus_settings: Settings, pgbus_bus: Bus, tmp_path: Path
) -> None:
    python, file = COMMANDS[path.name].split()
    assert python == "python" and ROOT / file == path
    with program(
        str(ROOT / file), database_url=str(pgbus_settings.database_url), cwd=tmp_path, PAUSE="0.01"
    ) as example:
        ROUND_TRIPS[path.name](example, pgbus_bus)
        assert example.stop(signal.SIGINT) == 0
        assert "Traceback" not in example.log


@pytest.mark.parametrize(("name", "lines"), [("bottle_orders.py", 115), ("chat.py", 170)])
def test_the_example_is_short(name: str, lines: int) -> None:
    assert len((ROOT / "examples" / name).read_text().splitlines()) < lines


def test_the_bottle_application_is_twenty_lines_of_python() -> None:
    """Lines with code count, imports included. The HTML of the page counts as one assignment."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    with open(ROOT / "examples/bottle_app.py", encoding="utf-8") as file:
        tokens = [token for token in tokenize.generate_tokens(file.readline) if token.type not in skipped]
    lines = {token.start[0] for token in tokens[1:]}  # the first is the docstring
    assert len(lines) <= 20


def test_an_example_brings_its_own_database(tmp_path: Path) -> None:
    with program(str(ROOT / "examples/bottle_app.py"), database_url="", cwd=tmp_path, PGBUS_DATA_DIR="data") as example:
        assert example.post("/", text="hello").status == 204
        with example.watch(path_in(example.page())) as client:
            assert client.next(timeout=PATIENCE).data == "hello"
        assert example.stop(signal.SIGINT) == 0
        assert "Traceback" not in example.log


def test_the_images_on_the_page_about_the_examples_are_small() -> None:
    page = (ROOT / "examples/README.md").read_text()
    for image in re.findall(r"\(images/([^)]+)\)", page):
        assert (ROOT / "examples/images" / image).stat().st_size < 120_000
