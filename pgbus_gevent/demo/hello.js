// The visitor's turn, beside the board: a form, the messages of visitors, and commands to copy.

import { now, painted } from "./latency.js";
import { calm, find, page, post, tell } from "./site.js";

const GREETINGS = 8; // messages that are shown

let untold = 0;
const mine = new Map(); // by id: when the visitor pressed the button, and when the message was on the screen

/** When both are known, show how long it took. Both are times of this browser, so no clocks are compared. */
function showMine(id, known) {
  const { pressed, shown, item } = mine.set(id, { ...mine.get(id), ...known }).get(id);
  if (pressed === undefined || shown === undefined) return;
  const took = `${Math.round(shown - pressed)} ms`;
  item.querySelector("time").textContent = took;
  find("said").textContent = `Published. It was on this screen ${took} after you pressed the button.`;
}

find("say").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = find("say").elements.text;
  const text = field.value.trim();
  if (!text) return;
  const pressed = now();
  const problem = (words) => (find("said").textContent = `Not published: ${words}.`);
  try {
    const answer = await post("demo/hello", { text });
    if (!answer.ok) return problem(answer.status < 500 ? await answer.text() : "the database is away");
    if (field.value.trim() === text) field.value = "";
    find("said").textContent = "Published.";
    showMine((await answer.json()).id, { pressed });
  } catch {
    problem("the server cannot be reached");
  }
});

/** Show a message to the stream of the visitors. */
export function greet({ id, data }) {
  const item = document.createElement("li");
  const said = document.createElement("span");
  said.textContent = data.length > 280 ? `${data.slice(0, 280)}…` : data;
  const time = document.createElement("time");
  const earlier = id <= page.helloWatermark;
  time.textContent = earlier ? "earlier" : new Date().toLocaleTimeString("en-GB");
  item.append(said, time);
  find("greetings").prepend(item);
  find("waiting").hidden = true;
  if (!earlier) {
    untold += 1;
    tell("hello", untold === 1 ? `New message: ${said.textContent}` : `${untold} new messages.`, () => (untold = 0));
    painted((shown) => showMine(id, { shown, item }));
    while (mine.size > GREETINGS) mine.delete(mine.keys().next().value);
  }
  while (find("greetings").children.length > GREETINGS) find("greetings").lastElementChild.remove();
  if (!calm.matches) item.animate({ opacity: [0, 1], transform: ["translateY(-8px)", "none"] }, { duration: 300, easing: "ease-out" });
}

// Commands. They name the server as the browser does, which a proxy may hide from the server. A shell takes such a name as it is.

for (const code of document.querySelectorAll("#commands code")) {
  if (/^https?:\/\/([\w.-]+|\[[\da-f:]+\])(:\d+)?$/i.test(location.origin)) {
    code.textContent = code.textContent.replace(/https?:\/\/[^/\s']+(?=\S*\/streams\/)/, location.origin);
  }
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  const label = button.querySelector("b");
  button.addEventListener("click", async () => {
    const code = button.closest("figure").querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      label.textContent = "Copied";
    } catch {
      // Without https, a browser has no clipboard for pages.
      getSelection().selectAllChildren(code);
      label.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    }
    setTimeout(() => (label.textContent = "Copy"), 1500);
  });
}
