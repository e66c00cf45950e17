/** A frame of an event stream. */
export interface Frame {
  id?: string | undefined;
  event: string;
  data: string;
  /** The index of its stream, if it has no id and the connection has several. */
  k?: number | undefined;
}

/** A parser of event streams, for bytes cut anywhere. `take` gets each frame, and `retry` each new time in ms. */
export function parser(take: (frame: Frame) => void, retry: (ms: number) => void): (bytes: Uint8Array) => void {
  // It drops a BOM, and keeps part of a character.
  const decoder = new TextDecoder();
  // The parts of a line that has not ended: joined once, because a large message comes in thousands of pieces.
  let rest: string[] = [];
  let cr = false;
  let frame: Partial<Frame> = {};
  const line = (text: string) => {
    if (!text) {
      const { id, event = "", data, k } = frame;
      // An id without data is that of the next frame, as for an EventSource.
      frame = data === undefined ? { id } : {};
      if (data !== undefined) take({ id, event, data, k });
      return;
    }
    const [, field, value] = /^([^:]*):? ?([^]*)$/.exec(text) as unknown as [string, string, string];
    if (field === "data") frame.data = frame.data === undefined ? value : frame.data + "\n" + value;
    else if (field === "event") frame.event = value;
    else if (field === "id" && !value.includes("\0")) frame.id = value;
    else if (/^retry: ?\d+$/.test(text)) retry(+value);
    // A comment: the stream of a frame without an id, on a connection with several.
    else if (/^: ?stream \d+$/.test(text)) frame.k = +value.slice(7);
  };
  return (bytes) => {
    let text = decoder.decode(bytes, { stream: true });
    if (!text) return;
    // The second half of a line break whose first half ended the last chunk.
    if (cr && text[0] === "\n") text = text.slice(1);
    cr = text.endsWith("\r");
    text.split(/\r?\n|\r/).forEach((part, i) => {
      if (i) {
        line(rest.join(""));
        rest = [];
      }
      rest.push(part);
    });
  };
}
