// The page of the tests of the hook for React. `show` renders a list of messages, and `hide` removes it.

import { useStream } from "pgbus-gevent/react";
import { StrictMode, useEffect, useState } from "react";
import { flushSync } from "react-dom";
import { createRoot, hydrateRoot } from "react-dom/client";

export function Orders({ options, prefix }) {
  const [items, setItems] = useState([]);
  // An object of each render, as in the guide.
  const { state, message, gap, connectionId } = useStream(options && { ...options }, {
    onMessage({ data }) {
      setItems((known) => [...known, `${prefix}${data}`]);
      if (data === "move") flushSync(() => globalThis.show(globalThis.next, prefix));
    },
  });
  // After the hook's effects: from now on, this render's handler is called.
  useEffect(() => {
    document.body.dataset.prefix = prefix;
  });
  return (
    <>
      <ul id="list">
        {items.map((item, number) => (
          <li key={number}>{item}</li>
        ))}
      </ul>
      <p id="state">{state}</p>
      <p id="last">{message?.data}</p>
      <p id="gap">{gap?.reason}</p>
      <p id="connection">{connectionId}</p>
    </>
  );
}

// The outermost element: React mounts twice only what is placed together with it.
export const App = ({ options, prefix = "" }) => <Orders options={options} prefix={prefix} />;
const strict = (options, prefix) => (
  <StrictMode>
    <App options={options} prefix={prefix} />
  </StrictMode>
);

let root;
globalThis.show = (options, prefix) => {
  root ??= createRoot(document.querySelector("main"));
  root.render(strict(options, prefix));
};
globalThis.hydrate = (options) => {
  root = hydrateRoot(document.querySelector("main"), strict(options), {
    onRecoverableError: (error) => reportError(error),
  });
};
globalThis.hide = () => root.unmount();
