// The box in which an operator publishes a message.

import { feed } from "./console-feed.js";
import { $, copier, make } from "./console-words.js";

const box = $("publish-box");
const form = $("publish-form");
const outcome = $("published");

/** Open the box, for a stream if one is given. */
export function publishTo(stream = "") {
  if (stream) form.elements.stream.value = stream;
  box.showModal();
  form.elements[form.elements.stream.value ? "data" : "stream"].focus();
}

/** Say whether this server can publish at all, and which audiences it knows. */
export function prepare({ unpublishable, labels = [] }) {
  form.querySelector("fieldset").disabled = Boolean(unpublishable);
  $("unpublishable").hidden = !unpublishable;
  $("unpublishable").textContent = unpublishable ? `This does not work here: ${unpublishable}.` : "";
  $("labels").replaceChildren(...labels.map((label) => {
    const option = make("option");
    option.value = label;
    return option;
  }));
}

function show(level, ...parts) {
  outcome.dataset.level = level;
  outcome.replaceChildren(...parts);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { stream, event: kind, data, visible_to: audience, ephemeral } = form.elements;
  const message = { stream: stream.value, data: data.value, event: kind.value || null, visible_to: audience.value || null, ephemeral: ephemeral.checked };
  show("", "publishing…");
  try {
    // Any worker can do it. The type keeps forms of other sites out.
    const answer = await fetch("console/publish", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(message) });
    if (!answer.ok) return show("bad", `Not published: ${(await answer.text()).trim()}.`);
    const { id } = await answer.json();
    if (id == null) show("good", "Published to those who are connected now. An ephemeral message has no id.");
    else show("good", `Published as ${id} `, copier(`the id ${id}`, () => String(id)));
  } catch {
    show("bad", "Not known whether it was published: the server did not answer. Look at the messages of the stream.");
  }
});

$("publish").addEventListener("click", () => feed.hello && publishTo());
$("publish-close").addEventListener("click", () => box.close());
