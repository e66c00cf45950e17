// sse-channel: one channel for each stream, fed by LISTEN. Arguments: the port and the database URL.
import http from "node:http"
import pg from "pg"
import SseChannel from "sse-channel"

const [port, connectionString] = process.argv.slice(2)
const channels = new Map()

async function channel(stream) {
  if (!channels.has(stream)) {
    const query = "select id, body from feed where stream = $1 order by id desc limit 500"
    const { rows } = await pool.query(query, [stream])
    const history = rows.reverse().map((row) => ({ id: Number(row.id), data: row.body }))
    // A notification that came during the query made the channel.
    if (!channels.has(stream)) channels.set(stream, new SseChannel({ history }))
  }
  return channels.get(stream)
}

async function listen() {
  const client = new pg.Client({ connectionString })
  client.on("error", () => {})
  client.on("end", () => setTimeout(listen, 500))
  client.on("notification", ({ payload }) => {
    const { id, stream, body } = JSON.parse(payload)
    channels.get(stream)?.send({ id, data: body })
  })
  try {
    await client.connect()
    await client.query("listen feed")
  } catch {
    client.end().catch(() => {})
  }
}

const pool = new pg.Pool({ connectionString })
pool.on("error", () => {})
await listen()
http
  .createServer(async (request, response) => {
    try {
      (await channel(request.url.slice(1))).addClient(request, response)
    } catch {
      response.writeHead(503).end()
    }
  })
  .listen(Number(port), "127.0.0.1")
