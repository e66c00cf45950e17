// What axe-core does not look at, as functions on a page. The tests run this file before the scripts of the page. Each function
// returns a list of faults, which is empty for a good page. tests/parts/accessibility_parts.py calls them.

window.a11y = (() => {
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const style = (element, pseudo) => getComputedStyle(element, pseudo);

  /** A short name of an element for people who read the list of faults. */
  const told = (element) => {
    const label = element.id ? `#${element.id}` : [...element.classList].map((name) => `.${name}`).join("");
    const text = (element.getAttribute("aria-label") ?? element.innerText ?? element.name ?? "").trim().replace(/\s+/g, " ");
    return `${element.localName}${label}${text ? ` “${text.slice(0, 30)}”` : ""}`;
  };

  const isShown = (element) => {
    const { width, height } = element.getBoundingClientRect();
    return element.checkVisibility({ visibilityProperty: true }) && width > 0 && height > 0;
  };

  /** Whether an element is only for screen readers: it is cut to a pixel, or to nothing. */
  const isForReaders = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const { clipPath, position } = style(one);
      const { width, height } = one.getBoundingClientRect();
      if (position === "absolute" && (clipPath.startsWith("inset(50%") || (width <= 1 && height <= 1))) return true;
    }
    return false;
  };

  // colours

  const brush = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", {
    willReadFrequently: true,
  });
  const rgba = (color) => {
    brush.clearRect(0, 0, 1, 1);
    brush.fillStyle = "#000";
    brush.fillStyle = color;
    brush.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = brush.getImageData(0, 0, 1, 1).data;
    return [red, green, blue, alpha / 255];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  const canvas = () => {
    const probe = document.body.appendChild(document.createElement("div"));
    probe.style.backgroundColor = "Canvas";
    const found = rgba(style(probe).backgroundColor);
    probe.remove();
    return found;
  };

  /** The colour behind an element, or behind its content. */
  const ground = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) {
      const layer = rgba(style(one).backgroundColor);
      if (layer[3] > 0) layers.push(layer);
      if (layer[3] === 1) break;
    }
    return layers.reduceRight((below, layer) => over(layer, below), canvas());
  };
  const luminance = (color) => {
    const [r, g, b] = color.slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (color, below) => {
    const [one, other] = [luminance(over(color, below)), luminance(below)];
    return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  };

  // the keyboard

  const WIDGETS =
    "a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex], [role=button], [role=link], [role=tab], " +
    "[role=slider], [role=switch], [role=checkbox], [role=menuitem], [role=option]";
  const COMPOSITES = "[role=tablist], [role=toolbar], [role=listbox], [role=menu], [role=grid], [role=radiogroup]";

  const candidates = () =>
    all(WIDGETS).filter(
      (one) => isShown(one) && !one.matches(":disabled") && !one.closest("[inert]") && one.getAttribute("tabindex") !== "-1",
    );

  let before = [];
  let walked = [];

  /** Begin a walk with the Tab key at the start of the page. */
  const start = () => {
    document.activeElement?.blur();
    getSelection().removeAllRanges();
    document.documentElement.tabIndex = -1;
    document.documentElement.focus();
    document.documentElement.removeAttribute("tabindex");
    scrollTo(0, 0);
    before = candidates();
    walked = [];
  };

  /** The elements whose looks may tell that a control has the focus: itself, and what its label shows instead of it. */
  const shownFor = (element) => {
    const label = element.closest("label");
    return label ? [element, label, ...all("*", label)] : [element];
  };

  /** Why nobody sees that an element has the focus; an empty text if it can be seen. */
  const unseen = (element) => {
    const reasons = [];
    for (const one of shownFor(element)) {
      const { outlineStyle, outlineWidth, outlineColor, opacity } = style(one);
      if (outlineStyle === "none" || parseFloat(outlineWidth) === 0 || Number(opacity) === 0) continue;
      if (outlineStyle === "auto") return ""; // the browser's own, which is drawn in two colours
      if (parseFloat(outlineWidth) < 2) reasons.push(`an outline of ${outlineWidth}`);
      else {
        const found = contrast(rgba(outlineColor), ground(one.parentElement ?? one));
        if (found >= 3) return "";
        reasons.push(`an outline with a contrast of ${found.toFixed(1)}`);
      }
    }
    return reasons.join(", ") || "no outline";
  };

  const isCovered = (element) => {
    const shown = element.closest("label") ?? element;
    // The browser has scrolled to it, but what a live page has added since then may have moved it.
    shown.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
    const { left, right, top, bottom } = shown.getBoundingClientRect();
    const [l, r] = [Math.max(left, 0), Math.min(right, innerWidth)];
    const [t, b] = [Math.max(top, 0), Math.min(bottom, innerHeight)];
    if (r - l < 1 || b - t < 1) return `it is outside of the window: ${[l, r, t, b].map(Math.round)}`;
    const points = [[0.5, 0.5], [0.1, 0.2], [0.9, 0.2], [0.1, 0.8], [0.9, 0.8]].map(([x, y]) => [l + (r - l) * x, t + (b - t) * y]);
    const tops = points.map(([x, y]) => document.elementFromPoint(x, y));
    if (tops.some((one) => one && (shown.contains(one) || one.contains(shown)))) return "";
    return `it is covered by ${told(tops[0])}`;
  };

  /** Look at the element that has the focus after a Tab. Null at the end of the page. */
  const stop = () => {
    const element = document.activeElement;
    if (!element || element === document.body || element === document.documentElement || walked.some(({ at }) => at === element))
      return null;
    const { left, right, top, bottom } = element.getBoundingClientRect();
    let free = true; // whether it stays at its place of the page when something scrolls
    for (let one = element.parentElement; one && one !== document.body; one = one.parentElement) free &&= !isScroller(one);
    const faults = [];
    if (isShown(element) && unseen(element)) faults.push(`focus on ${told(element)} is not seen: ${unseen(element)}`);
    if (isCovered(element)) faults.push(`${told(element)} has the focus, and ${isCovered(element)}`);
    if (element.tabIndex > 0) faults.push(`${told(element)} has tabindex ${element.tabIndex}`);
    walked.push({ at: element, left, right, top: top + scrollY, bottom: bottom + scrollY, free });
    return faults;
  };

  /** What the walk should have come to and did not, and jumps against the order of the page. */
  const finish = () => {
    const visited = walked.map(({ at }) => at);
    const alike = (one) => visited.some((other) => one.type === "radio" && other.type === "radio" && one.name === other.name);
    const roving = (one) => one.closest(COMPOSITES) && visited.some((other) => one.closest(COMPOSITES).contains(other));
    const faults = candidates()
      .filter((one) => before.includes(one) && !visited.includes(one) && !alike(one) && !roving(one))
      .map((one) => `Tab does not come to ${told(one)}`);
    walked.slice(1).forEach((next, index) => {
      const last = walked[index];
      if (!next.free || !last.free) return;
      const common = Math.min(next.right, last.right) - Math.max(next.left, last.left);
      const narrow = Math.min(next.right - next.left, last.right - last.left);
      if (next.bottom < last.top && common > narrow / 2) faults.push(`Tab goes up from ${told(last.at)} to ${told(next.at)}`);
    });
    if (before.length && !walked.length) faults.push("Tab comes to nothing");
    return faults;
  };

  // forced colours

  const LOOKS = ["color", "backgroundColor", "borderTopColor", "borderTopStyle", "borderTopWidth", "borderBottomColor",
    "borderBottomStyle", "borderBottomWidth", "outlineStyle", "outlineColor", "textDecorationLine", "fontWeight"];
  const looks = (element) =>
    [element, ...all("*", element)]
      .flatMap((one) => [
        ...LOOKS.map((name) => style(one)[name]),
        ...["::before", "::after"].map((pseudo) => style(one, pseudo).content),
      ])
      .join(";");
  const STATES = ["[aria-pressed=true]", "[aria-current]:not([aria-current=false])", "[aria-selected=true]", "[aria-checked=true]",
    "[aria-sort]", ":checked"];

  /** Controls that look the same whether they are on or off. */
  const states = () =>
    STATES.flatMap((state) =>
      all(state).filter(isShown).flatMap((on) => {
        if (on.localName === "option") return [];
        const shown = (one) => (one.localName === "input" ? [...shownFor(one)].at(-1) : one);
        // A native control draws its own state.
        if (on.localName === "input" && Number(style(on).opacity) > 0) return [];
        const area = on.closest("fieldset, [role=group], nav, tr, ul, div") ?? document.body;
        const other = all(on.localName, area).find((one) => one !== on && isShown(one) && !one.matches(state));
        return other && looks(shown(on)) === looks(shown(other)) ? [`${told(on)} looks like ${told(other)}`] : [];
      }),
    );

  /** Drawings of which nothing stands out from the page. */
  const drawings = () =>
    all("svg").filter(isShown).flatMap((svg) => {
      const shapes = all("path, line, rect, circle, polyline, polygon, text", svg).filter((one) => one.checkVisibility());
      const seen = shapes.some((one) => {
        const { stroke, fill, opacity, strokeOpacity, fillOpacity } = style(one);
        return [[stroke, strokeOpacity], [fill, fillOpacity]].some(([color, share]) => {
          if (color === "none") return false;
          const [r, g, b, a] = rgba(color);
          return contrast([r, g, b, a * Number(opacity) * Number(share)], ground(svg)) >= 3;
        });
      });
      return shapes.length && !seen ? [`nothing of ${told(svg)} in ${told(svg.parentElement)} can be seen`] : [];
    });

  // narrow windows, and text with more space

  const isScroller = (one) => {
    const { overflowX, overflowY } = style(one);
    const [x, y] = [/auto|scroll/.test(overflowX), /auto|scroll/.test(overflowY)];
    return (x && one.scrollWidth > one.clientWidth + 1) || (y && one.scrollHeight > one.clientHeight + 1);
  };

  /** What makes the page wider than the window. */
  const tooWide = () => {
    const { scrollWidth, clientWidth } = document.documentElement;
    if (scrollWidth <= clientWidth) return [];
    const first = all("body *").filter((one) => isShown(one) && one.getBoundingClientRect().right > clientWidth + 1);
    return [`the page is ${scrollWidth} pixels wide: ${first.slice(0, 4).map(told).join(", ")}`];
  };

  /** What is wider than the window, and parts that scroll sideways without a reason or without a way for the keyboard. */
  const wide = () => {
    const faults = tooWide();
    for (const one of all("body *").filter((each) => isShown(each) && isScroller(each))) {
      if (one.scrollWidth <= one.clientWidth + 1 || !/auto|scroll/.test(style(one).overflowX)) continue;
      const isWideByNature = one.matches("pre, textarea") || one.querySelector("table, pre, svg, canvas");
      if (!isWideByNature) faults.push(`${told(one)} scrolls sideways`);
      const named = one.hasAttribute("aria-label") || one.hasAttribute("aria-labelledby") || one.matches("textarea, input");
      if (one.tabIndex < 0 && !one.querySelector(WIDGETS)) faults.push(`${told(one)} scrolls, and has no place in the Tab order`);
      if (one.tabIndex >= 0 && !named) faults.push(`${told(one)} scrolls, and has no name`);
    }
    return faults;
  };

  const texts = () => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
      const { currentNode: node } = walker;
      const parent = node.parentElement;
      if (!node.data.trim() || parent.closest("script, style, template, noscript, option, svg") || !isShown(parent)) continue;
      if (!isForReaders(parent)) found.push(node);
    }
    return found;
  };

  const boxes = (node) => {
    const range = document.createRange();
    range.selectNodeContents(node);
    return [...range.getClientRects()].filter(({ width, height }) => width > 1 && height > 1);
  };

  /** Texts of which a part is cut off, by element. What an ellipsis cuts may be in a title. */
  const cut = () => {
    const found = [];
    for (const node of texts()) {
      for (let box = node.parentElement; box && box !== document.body; box = box.parentElement) {
        const { overflowX, overflowY, textOverflow } = style(box);
        const { left, right, top, bottom } = box.getBoundingClientRect();
        if (/auto|scroll/.test(overflowX + overflowY)) break; // it can be scrolled into view
        const [x, y] = [/hidden|clip/.test(overflowX), /hidden|clip/.test(overflowY)];
        if (!x && !y) continue;
        if (textOverflow === "ellipsis" && (box.title || box.getAttribute("aria-label"))) continue;
        const after = 2 + (parseFloat(style(node.parentElement).letterSpacing) || 0); // the space after the last letter may be lost
        const lost = boxes(node).some((one) => {
          const sideways = x && (one.right > right + after || one.left < left - 2);
          return sideways || (y && (one.bottom > bottom + 3 || one.top < top - 3));
        });
        if (lost) found.push(`${told(node.parentElement)} is cut off by ${told(box)}`);
      }
    }
    return [...new Set(found)];
  };

  /** The parts of a text that are not scrolled or cut away. */
  const seenBoxes = (node) => {
    let found = boxes(node).map(({ left, right, top, bottom }) => ({ left, right, top, bottom }));
    for (let box = node.parentElement; box && box !== document.body; box = box.parentElement) {
      const { overflowX, overflowY } = style(box);
      if (overflowX === "visible" && overflowY === "visible") continue;
      const { left, right, top, bottom } = box.getBoundingClientRect();
      found = found.map((one) => ({
        left: Math.max(one.left, left),
        right: Math.min(one.right, right),
        top: Math.max(one.top, top),
        bottom: Math.min(one.bottom, bottom),
      }));
    }
    return found.filter((one) => one.right - one.left > 1 && one.bottom - one.top > 1);
  };

  /** Texts that lie upon each other. */
  const overlaps = () => {
    const nodes = texts().map((node) => ({ node, areas: seenBoxes(node) }));
    const found = [];
    nodes.forEach(({ node, areas }, index) => {
      for (const { node: other, areas: others } of nodes.slice(index + 1)) {
        if (node.parentElement === other.parentElement) continue;
        const hit = areas.some((one) =>
          others.some((two) => {
            const wide = Math.min(one.right, two.right) - Math.max(one.left, two.left);
            const high = Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top);
            return wide > 2 && high > Math.min(one.bottom - one.top, two.bottom - two.top) / 3;
          }),
        );
        if (hit) found.push(`${told(node.parentElement)} lies on ${told(other.parentElement)}`);
      }
    });
    return [...new Set(found)];
  };

  // WCAG 1.4.12
  const SPACING = `
    * { line-height: 1.5 !important; letter-spacing: .12em !important; word-spacing: .16em !important }
    p { margin-bottom: 2em !important }`;

  /** What is cut off, lies upon something else or makes the page wider with the text spacing of WCAG 1.4.12, and is not without. */
  const spaced = () => {
    const known = new Set([...cut(), ...overlaps()]);
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(SPACING);
    document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
    const found = [...cut(), ...overlaps(), ...tooWide()].filter((one) => !known.has(one));
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((one) => one !== sheet);
    return found;
  };

  // movement and announcements

  const moving = () =>
    document
      .getAnimations()
      .filter((one) => one.playState === "running" && one.effect.getComputedTiming().duration > 10)
      .map((one) => `${told(one.effect.target)} moves: ${one.animationName ?? one.transitionProperty}`);

  const POLITE = { status: "polite", log: "polite", alert: "assertive" };
  const liveness = (element) => {
    const value = (name) => element.getAttribute?.(name);
    return value("aria-live") ?? POLITE[value("role")] ?? (element.localName === "output" ? "polite" : "");
  };
  const regionOf = (node) => {
    for (let one = node; one; one = one.parentElement) if (liveness(one)) return liveness(one) === "off" ? null : one;
    return null;
  };
  const regions = () => all("[aria-live], [role=status], [role=log], [role=alert], output").filter((one) => regionOf(one) === one);

  let heard = new Map();
  let listening = null;

  /** From now on, note when a screen reader would have something to say. */
  const listen = () => {
    heard = new Map();
    listening?.disconnect();
    listening = new MutationObserver((changes) => {
      const now = Math.round(performance.now());
      for (const region of new Set(changes.map(({ target }) => regionOf(target)))) {
        if (!region || !region.checkVisibility()) continue;
        const times = heard.get(region) ?? heard.set(region, []).get(region);
        if (!times.length || now - times.at(-1) > 100) times.push(now);
      }
    });
    listening.observe(document.body, { subtree: true, childList: true, characterData: true });
    listening.since = performance.now();
  };

  /** What a screen reader would say too often, or from too many places. */
  const chatter = () => {
    const seconds = (performance.now() - listening.since) / 1000;
    const spoke = [...heard].filter(([, times]) => times.length > 1 + seconds / 3);
    const faults = spoke.map(([region, times]) => `${told(region)} changes ${times.length} times in ${seconds.toFixed(0)} s`);
    const often = [...heard].filter(([, times]) => times.length > 1).map(([region]) => told(region));
    if (often.length > 1) faults.push(`several regions speak: ${often.join(", ")}`);
    return faults;
  };

  /** What every page has: one main part, one main heading, a title, a language, and a polite region if it changes by itself. */
  const frame = (isLive) => {
    const faults = [];
    const count = (selector, number = 1) => {
      const found = all(selector).filter((one) => one.checkVisibility()).length;
      if (found !== number) faults.push(`${found} × ${selector}`);
    };
    count("main, [role=main]");
    count("h1");
    if (!document.title) faults.push("it has no title");
    if (!document.documentElement.lang) faults.push("it has no language");
    // Those of the browser know Enter and Space. Sliders of our own have their tests where they are used.
    const made = "[role=button], [role=link], [role=checkbox], [role=tab], [role=switch], [role=menuitem], [onclick]";
    const unusual = all(made).filter((one) => !one.matches("button, a[href], input, summary"));
    faults.push(...unusual.map((one) => `${told(one)} is no control of the browser`));
    if (isLive && !regions().some((one) => liveness(one) === "polite")) faults.push("no polite region tells of changes");
    return faults;
  };

  return { start, stop, finish, states, drawings, wide, spaced, moving, listen, chatter, frame, cut };
})();
