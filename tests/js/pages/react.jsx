// The page of the tests of the hook for React. `show` renders a list of messages, and `hide` removes it.

import { useStream } from "pgbus-gevent/react";
import { StrictMode, useState } from "react";
import { flushSync } from "react-dom";
import { createRoot, hydrateRoot } from "react-dom/client";

export function Orders({ options, prefix }) {
  const [items, setItems] = useState([]);
  const { state, message, gap, connectionId } = useStream(options, {
    onMessage({ data }) {
      setItems((known) => [...known, `${prefix}${data}`]);
      if (data === "move") flushSync(() => globalThis.show(globalThis.next, prefix));
    },
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

export const App = ({ options, prefix = "" }) => (
  <StrictMode>
    <Orders options={options} prefix={prefix} />
  </StrictMode>
);

let root;
globalThis.show = (options, prefix) => {
  root ??= createRoot(document.querySelector("main"));
  root.render(<App options={options} prefix={prefix} />);
};
globalThis.hydrate = (options) => {
  root = hydrateRoot(document.querySelector("main"), <App options={options} />, {
    onRecoverableError: (error) => reportError(error),
  });
};
globalThis.hide = () => root.unmount();
