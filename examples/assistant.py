"""An assistant that writes its answers word by word. No word is lost if the page is reloaded in the middle.

Run it and open http://127.0.0.1:8080/. Ask, reload while it writes, cut the connection, open the same address in a second browser.

A greenlet of the server writes the answer, not the page's request. Each word is a message in the conversation's stream, and the
stream is the conversation: a page reads it from the start (`since=0`) and then goes on live. If hundreds of words come per second,
coalesce them and send the text so far: see "An answer that grows" in docs/coalescing.md.

The answers are quotations from books in the public domain. Give a database in PGBUS_DATABASE_URL and a secret in PGBUS_SECRET, or
neither; then the embedded PostgreSQL is started.
"""
# ruff: noqa: E402

from gevent import monkey

monkey.patch_all()  # before all other imports: modules that are imported unpatched would block every client

import json
import os
import random
import re
import secrets

import bottle
import gevent
from gevent.pool import Group

from pgbus_gevent import Bus, Settings
from pgbus_gevent.bottle_plugin import PgbusPlugin, Server
from pgbus_gevent.bus import Stream
from pgbus_gevent.database.embedded import EmbeddedPostgres

PAUSE = float(os.environ.get("PAUSE", "0.07"))  # seconds between two words, on average
BOOKS = {
    "What did Alice think of books?": """Alice was beginning to get very tired of sitting by her sister on the bank, and of
        having nothing to do: once or twice she had peeped into the book her sister was reading, but it had no pictures or
        conversations in it, “and what is the use of a book,” thought Alice “without pictures or conversations?”

        So she was considering in her own mind (as well as she could, for the hot day made her feel very sleepy and stupid), whether
        the pleasure of making a daisy-chain would be worth the trouble of getting up and picking the daisies, when suddenly a White
        Rabbit with pink eyes ran close by her.

        — Lewis Carroll, Alice’s Adventures in Wonderland (1865)""",
    "Why go to sea?": """Whenever I find myself growing grim about the mouth; whenever it is a damp, drizzly November in my soul;
        whenever I find myself involuntarily pausing before coffin warehouses, and bringing up the rear of every funeral I meet; and
        especially whenever my hypos get such an upper hand of me, that it requires a strong moral principle to prevent me from
        deliberately stepping into the street, and methodically knocking people’s hats off—then, I account it high time to get to
        sea as soon as I can.

        — Herman Melville, Moby-Dick (1851)""",
    "Why live in the woods?": """I went to the woods because I wished to live deliberately, to front only the essential facts of
        life, and see if I could not learn what it had to teach, and not, when I came to die, discover that I had not lived. I did
        not wish to live what was not life, living is so dear; nor did I wish to practise resignation, unless it was quite
        necessary.

        — Henry David Thoreau, Walden (1854)""",
}
WELCOME = """An assistant whose answers come word by word, as from a language model. Each word is a message. Ask one of
    the questions below, and reload this page while the answer is being written: it goes on, and no word is missing."""

url = os.environ.get("PGBUS_DATABASE_URL") or EmbeddedPostgres.open(Settings.load().data_dir).url
# Messages of a conversation are kept for a day.
bus = Bus(
    url, secret=os.environ.get("PGBUS_SECRET", "only for this example"), retention_patterns={"conversation:*": "1d"}
)
app = bottle.Bottle()
app.install(PgbusPlugin(bus))
writers = Group()


@app.get("/")
def start(pgbus):
    conversation = secrets.token_urlsafe(12)
    begin(pgbus.stream(f"conversation:{conversation}"), "What is this?", WELCOME)
    bottle.redirect(f"/c/{conversation}")


@app.get("/c/<conversation>")
def page(pgbus, conversation):
    return bottle.template(PAGE, path=pgbus.stream_path(f"conversation:{conversation}"), questions=list(BOOKS))


@app.post("/c/<conversation>")
def ask(pgbus, conversation):
    question = bottle.request.forms.question
    text = BOOKS.get(question) or bottle.abort(400, "There is no answer to that.")
    begin(pgbus.stream(f"conversation:{conversation}"), question, text)
    bottle.response.status = 204


def begin(stream: Stream, question: str, text: str) -> None:
    """Publish a question, and have its answer written."""
    writers.spawn(answer, stream, stream.broadcast(question, event="question"), text)


def answer(stream: Stream, number: int, text: str) -> None:
    """Write the answer to a question word by word, as a language model would."""
    paragraphs = (re.sub(r"\s+", " ", paragraph.strip()) for paragraph in text.split("\n\n"))
    place = 0
    try:
        for word in re.findall(r"\S+\s*", "\n\n".join(paragraphs)):
            gevent.sleep(random.uniform(0, 2 * PAUSE))
            # `at` is not needed to put the answer together. With it, the page checks that no word is missing or repeated.
            stream.broadcast(json.dumps({"answer": number, "at": place, "text": word}), event="word")
            place += len(word)
    finally:
        stream.broadcast(str(number), event="done")  # also if the server is stopped


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>The assistant</title><style>
  :root { color-scheme: light dark; --card: light-dark(#fff, #221f2b); --quiet: light-dark(#6a6478, #a29cb2); --ink: #6a4bc4 }
  * { box-sizing: border-box } body { font: 1rem/1.55 system-ui, sans-serif; max-width: 46rem; min-height: 100dvh; margin: 0 auto;
    padding: 1.2rem 1rem; display: flex; flex-direction: column; gap: .8rem; background: light-dark(#f4f2f9, #15131b) }
  h1 { font-size: 1.3rem; margin: 0 } #log { flex: 1; display: grid; gap: .7rem; align-content: start } p { margin: 0 }
  .question { justify-self: end; background: var(--ink); color: #fff; border-radius: 1rem; padding: .4rem 1rem }
  .answer { background: var(--card); border-radius: 1rem; padding: .7rem 1.1rem; white-space: pre-wrap; font-family: Georgia,
    "DejaVu Serif", serif } .answer:not(.done)::after { content: "▍"; color: var(--ink) }
  @media (prefers-reduced-motion: no-preference) { .answer::after { animation: blink 1s steps(2) infinite } }
  @keyframes blink { to { opacity: 0 } } form, footer { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center }
  button { font: inherit; font-size: .95rem; padding: .4rem .9rem; border: 1px solid #8d84a866; border-radius: 1rem;
    background: var(--card); color: inherit; cursor: pointer } form button { border-color: var(--ink) }
  #news { position: absolute; clip-path: inset(50%) }
  footer { color: var(--quiet); font-size: .85rem } footer button { font-size: .85rem } #told { flex: 1; min-width: 15rem }
</style>
<h1>Ask, and reload the page during the answer</h1>
<main id="log"></main><p id="news" role="status"></p>
<form method="post">
% for question in questions:
  <button name="question" value="{{question}}">{{question}}</button>
% end
</form>
<footer><span id="told"></span><button id="reload">Reload</button><button id="cut">Cut the connection for 3 s</button></footer>
<pgbus-stream-source src="{{path}}" since="0"></pgbus-stream-source>
<script>
  const source = document.querySelector("pgbus-stream-source");
  let words = 0, missing = 0, repeated = 0;
  const line = (name, text) => log.appendChild(Object.assign(document.createElement("p"), { className: name, textContent: text }));
  const on = (name, then) => source.addEventListener(name, ({ detail }) => {
    then(detail);
    told.textContent = `${words} words came, ${missing} are missing, ${repeated} came twice`;
    if (name !== "word" || scrollY + innerHeight > document.body.scrollHeight - 90) scrollTo(0, document.body.scrollHeight);
  });
  on("question", ({ id, data }) => { line("question", data); line("answer", "").id = `answer-${id}`; });
  on("word", ({ data }) => {
    const { answer, at, text } = JSON.parse(data), place = document.getElementById(`answer-${answer}`);
    words++; missing += at > place.textContent.length; repeated += at < place.textContent.length;
    place.append(text);
  });
  on("done", ({ data }) => {
    const place = document.getElementById(`answer-${data}`);
    place.classList.add("done");
    news.textContent = place.textContent; // a screen reader reads the answer when it is whole
  });
  reload.onclick = () => location.reload();
  cut.onclick = () => { // an element that is inserted again resumes from its cursor
    source.remove(); cut.disabled = true;
    setTimeout(() => { document.body.append(source); cut.disabled = false; }, 3000);
  };
</script>
<script type="module" src="/pgbus/pgbus.js"></script>"""

bottle.run(app, server=Server, port=int(os.environ.get("PORT", "8080")))
writers.kill()
