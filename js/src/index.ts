export { connect, type PgbusStream } from "./connect.js";
export { type Frame, parser } from "./parser.js";
export type * from "./types.js";
