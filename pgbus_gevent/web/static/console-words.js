// Texts and elements: numbers in words, elements whose text changes without loss of a selection, what is said, what is copied.

export const $ = (id) => document.getElementById(id);
export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

export const whole = new Intl.NumberFormat("en");
const one = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export function amount(value) {
  if (value == null) return "–";
  if (value >= 1e6) return `${one.format(value / 1e6)} M`;
  if (value >= 1e5) return `${whole.format(Math.round(value / 1e3))} k`;
  return value > 0 && value < 10 && value % 1 ? one.format(value) : whole.format(Math.round(value));
}

export const several = (count, thing) => `${amount(count)} ${thing}${count === 1 ? "" : "s"}`;

/** A duration as its number and its unit. */
export function short(seconds) {
  if (seconds == null) return ["–", ""];
  const [value, unit] = seconds >= 1 ? [seconds, "s"] : seconds >= 0.001 ? [seconds * 1e3, "ms"] : [seconds * 1e6, "µs"];
  return [value >= 100 || unit === "µs" ? String(Math.round(value)) : value.toFixed(value >= 10 ? 1 : 2), unit];
}

export const lasting = (seconds) => short(seconds).join(" ").trim();

export function age(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

export function size(bytes) {
  if (bytes == null) return "–";
  if (bytes < 1024) return `${Math.round(bytes)} B`;
  if (bytes < 1048576) return `${Math.round(bytes / 1024)} kB`;
  return `${one.format(bytes / 1048576)} MB`;
}

export function make(tag, text = "", className = "") {
  const made = document.createElement(tag);
  if (text !== "") made.textContent = text;
  if (className) made.className = className;
  if (tag === "button") made.type = "button";
  return made;
}

/** Whether selected text touches an element. Nothing there may change or move then, or the selection would be lost. */
export function selected(element) {
  const selection = document.getSelection();
  return selection.rangeCount > 0 && !selection.isCollapsed && selection.getRangeAt(0).intersectsNode(element);
}

/** Set the text of an element, unless somebody is about to copy it; the next refresh catches up. */
export function say(element, text, level = "") {
  if (element.textContent !== text && !selected(element)) {
    if (element.childNodes.length === 1 && element.firstChild.nodeType === Node.TEXT_NODE) element.firstChild.data = text;
    else element.textContent = text;
  }
  if (level) element.dataset.level = level;
  else delete element.dataset.level;
}

/** Have a screen reader say the outcome of what the operator has just done. */
export function announce(text) {
  const place = $("said");
  // Some say a text only if it differs from the last one.
  place.textContent = place.textContent === text ? `${text}\u00a0` : text;
}

export function notice(text = "") {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

/** Copy a text. `navigator.clipboard` is missing on a page without https, and may be forbidden. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const before = document.activeElement;
    const field = make("textarea", "", "sr");
    field.value = text;
    field.readOnly = true;
    // The rest of the page cannot be selected while a dialog is open.
    (document.querySelector("dialog[open]") ?? document.body).append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    before?.focus();
    return done;
  }
}

/** A button that copies `text()`. `name` says what that is. */
export function copier(name, text) {
  const button = make("button", "copy", "link copy");
  button.setAttribute("aria-label", `copy ${name}`);
  button.title = `copy ${name}`;
  let timer;
  button.addEventListener("click", async () => {
    clearTimeout(timer);
    const done = await copy(text());
    button.textContent = done ? "copied" : "failed";
    if (done) announce(`copied ${name}`);
    else notice(`This browser does not let the page copy ${name}. It is: ${text()}`);
    timer = setTimeout(() => (button.textContent = "copy"), 2000);
  });
  return button;
}

/** Mark a button that can do nothing now. It keeps the focus, which it would lose if it were disabled. */
export function allow(button, allowed) {
  if (allowed) button.removeAttribute("aria-disabled");
  else button.setAttribute("aria-disabled", "true");
}

export const allowed = (button) => button.getAttribute("aria-disabled") !== "true";
