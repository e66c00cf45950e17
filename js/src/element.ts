import { safely } from "./acts.js";
import { follows } from "./connect.js";
import { Subscription } from "./subscription.js";
import type { BubblingEventMap, Cursor, Follower, ListensToMessages, Message, State } from "./types.js";

export * from "./index.js";

/** Other libraries of the page. */
declare const globalThis: {
  htmx?: {
    find(selector: string): Element | null;
    config: { defaultSwapStyle?: string };
    swap(target: Element, html: string, how: object): void;
    /** In htmx 4. */
    swap(what: object): void;
  };
  Turbo?: { renderStreamMessage(html: string): void };
  HTMLElement: typeof HTMLElement;
};

/** There is no such class where pages are rendered on a server. */
const Base = globalThis.HTMLElement ?? (class {} as typeof HTMLElement);

const ATTRIBUTES = ["src", "stream", "streams", "base", "since", "since-id", "credentials", "shared", "identity"];

class Source extends follows(Base) {
  static observedAttributes = ATTRIBUTES;
  /** A restart is due. */
  declare _again: boolean | undefined;
  /** It changes an attribute itself. */
  declare _own: boolean | undefined;
  /** The attribute with the cursors. */
  declare _since: string;

  connectedCallback(): void {
    const given: Record<string, any> = {};
    for (const name of ATTRIBUTES) given[name] = this.getAttribute(name) ?? undefined;
    const words = (name: string) => given[name]?.match(/\S+/g) ?? undefined;
    this._since = words("since-id") && !words("since") ? "since-id" : "since";
    const { shared } = given;
    this._sub = new Subscription(this, {
      ...given,
      streams: words("streams"),
      since: words(this._since),
      shared: shared === "false" ? "none" : shared || undefined,
    });
  }

  disconnectedCallback(): void {
    this.close();
    this._sub = undefined;
  }

  attributeChangedCallback(_: string, before: string | null, now: string | null): void {
    if (this._own || before === now || !this._sub || this._again) return;
    this._again = true;
    queueMicrotask(() => {
      this._again = false;
      if (!this._sub) return;
      this.close();
      this.connectedCallback();
    });
  }

  _turned(state: State): void {
    this.setAttribute("state", state);
  }

  /** Keep the cursor in the document, so that a copy of the page has the cursor of its contents. */
  _moved(cursors: Map<string, Cursor>): void {
    // A handler has just given it another start.
    if (this._again) return;
    this._own = true;
    this.setAttribute(this._since, [...cursors.values()].map((cursor) => cursor ?? "-").join(" "));
    this._own = false;
  }

  _message({ event, data }: Message): void {
    // Turbo puts all that it gets into the page, so it gets only its own elements.
    if (!event && data.includes("<turbo-stream")) safely(() => globalThis.Turbo?.renderStreamMessage(data));
    if (!globalThis.htmx) return;
    for (const part of [this, ...this.querySelectorAll("[sse-swap]")])
      if (part.getAttribute("sse-swap")?.split(/[\s,]+/).includes(event || "message")) safely(() => this._swap(part, data));
  }

  _swap(part: Element, data: string): void {
    const htmx = globalThis.htmx!;
    const { defaultSwapStyle } = htmx.config;
    let holder: Element | null = null;
    const near = (name: string): string | null | undefined =>
      (holder = part.closest(`[${name}],[${name}\\:inherited]`))?.getAttribute(name) ?? holder?.getAttribute(`${name}:inherited`);
    const swap = near("hx-swap");
    const selector = near("hx-target") ?? "this";
    const target = selector === "this" ? holder ?? part : htmx.find(selector);
    if (!target) return;
    // htmx 4 has no such setting, and takes all modifiers.
    if (defaultSwapStyle) {
      const swapStyle = swap?.split(" ")[0] ?? defaultSwapStyle;
      htmx.swap(target, data, { swapStyle, swapDelay: 0, settleDelay: 20 });
    } else htmx.swap({ text: data, sourceElement: part, target, swap });
  }
}

/** The element `<pgbus-stream-source>`. */
export interface PgbusStreamSource extends HTMLElement, Follower {
  addEventListener: ListensToMessages["addEventListener"];
  removeEventListener: ListensToMessages["removeEventListener"];
}

try {
  customElements.define("pgbus-stream-source", Source as never);
} catch {
  // Another copy of this module has defined it; or this is no page.
}

declare global {
  interface HTMLElementTagNameMap {
    "pgbus-stream-source": PgbusStreamSource;
  }
  interface GlobalEventHandlersEventMap extends BubblingEventMap {}
}
