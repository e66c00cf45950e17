// Open a page in a tab that has another one in front of it, so that it is hidden.

export const openBehind = {
  /** In Chromium, Playwright makes each of its pages believe that it has the focus. So this one belongs to no context of Playwright's. */
  async chromium(context, url) {
    const session = await context.browser().newBrowserCDPSession();
    const { browserContextId } = await session.send("Target.createBrowserContext");
    const page = await attached(session, browserContextId, url);
    await (await attached(session, browserContextId, "about:blank")).send("Page.bringToFront");
    page.close = () => session.send("Target.disposeBrowserContext", { browserContextId });
    return page;
  },

  async firefox(context, url) {
    const page = await context.newPage();
    await page.goto(url);
    await Promise.all([page.waitForEvent("popup"), page.evaluate("void window.open('about:blank')")]);
    return page;
  },

  async webkit(context, url) {
    const page = await context.newPage("tab");
    await page.goto(url);
    return page;
  },
};

/** A page over the protocol of Chromium's DevTools. */
async function attached(session, browserContextId, url) {
  const { targetId } = await session.send("Target.createTarget", { url, browserContextId });
  const { sessionId } = await session.send("Target.attachToTarget", { targetId });
  const waiting = new Map();
  session.on("Target.receivedMessageFromTarget", ({ sessionId: from, message }) => {
    const { id, result, error } = JSON.parse(message);
    if (from === sessionId) waiting.get(id)?.(result ?? { error });
  });
  const send = (method, params = {}) =>
    new Promise((done) => {
      const id = waiting.size + 1;
      waiting.set(id, done);
      session.send("Target.sendMessageToTarget", { sessionId, message: JSON.stringify({ id, method, params }) });
    });
  const evaluate = async (expression) => {
    const { result, exceptionDetails, error } = await send("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (!result || exceptionDetails) throw new Error(JSON.stringify(exceptionDetails ?? error));
    return result.value;
  };
  return { send, evaluate };
}
