/** Call code of the page. An exception in it is reported, and does not stop other messages. */
export const safely = (act: () => void): void => {
  try {
    act();
  } catch (error) {
    // reportError may be missing, or replaced by one that throws.
    queueMicrotask(() => {
      if (!globalThis.reportError) throw error;
      reportError(error);
    });
  }
};

/** Do something next. Not with a timer, which may be a second late in a hidden tab. */
export const soon = (act: () => void): void => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => {
    port1.close();
    act();
  };
  port2.postMessage(0);
};
