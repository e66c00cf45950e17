// The page of the tests of the composable for Vue. `show` renders a list of messages, and `hide` removes it.

import { useStream } from "pgbus-gevent/vue";
import { createApp, createSSRApp, h, nextTick, ref, shallowRef } from "vue";

const Orders = {
  props: ["options", "prefix"],
  setup(props) {
    const items = ref([]);
    const { state, message, gap, connectionId } = useStream(() => props.options, {
      onMessage({ data }) {
        items.value.push(`${props.prefix}${data}`);
        if (data === "move") globalThis.show(globalThis.next, props.prefix);
      },
    });
    return () => [
      h("ul", { id: "list" }, items.value.map((item) => h("li", item))),
      h("p", { id: "state" }, state.value),
      h("p", { id: "last" }, message.value?.data),
      h("p", { id: "gap" }, gap.value?.reason),
      h("p", { id: "connection" }, connectionId.value),
    ];
  },
};

const given = shallowRef({});
export const App = { render: () => h(Orders, { prefix: "", ...given.value }) };

let app;
const start = (create) => {
  app = create(App);
  app.config.warnHandler = (problem) => reportError(new Error(problem));
  app.mount("main");
};
globalThis.show = (options, prefix = "") => {
  given.value = { options, prefix };
  if (!app && globalThis.document) start(createApp);
  nextTick(() => {
    if (globalThis.document) document.body.dataset.prefix = prefix;
  });
};
globalThis.hydrate = (options) => {
  given.value = { options };
  start(createSSRApp);
};
globalThis.hide = () => app.unmount();
