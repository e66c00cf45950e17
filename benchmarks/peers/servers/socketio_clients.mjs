// Clients with Socket.IO's own library. Commands on stdin, and events on stdout, are lines of JSON:
// {"open": n, "stream": s}, {"cut": n}, {"stall": n, "ms": m}, {"close": n}; {"client": n, "text": t},
// {"client": n, "connected": true, "lost": whether the state was not recovered}.
import readline from "node:readline"
import { io } from "socket.io-client"

const [url] = process.argv.slice(2)
const sockets = new Map()
const say = (event) => process.stdout.write(JSON.stringify(event) + "\n")
const raw = (n) => sockets.get(n)?.io.engine?.transport?.ws?._socket

function open(n, stream) {
  const socket = io(url, {
    forceNew: true,
    transports: ["websocket"],
    query: { stream },
    reconnectionDelay: 600,
    reconnectionDelayMax: 600,
    randomizationFactor: 0.6,
  })
  let connected = false
  socket.on("connect", () => {
    say({ client: n, connected: true, lost: connected && !socket.recovered })
    connected = true
  })
  socket.on("message", (text) => say({ client: n, text }))
  sockets.set(n, socket)
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const command = JSON.parse(line)
  if ("open" in command) open(command.open, command.stream)
  if ("cut" in command) raw(command.cut)?.destroy()
  if ("close" in command) sockets.get(command.close)?.disconnect()
  if ("stall" in command) {
    const socket = raw(command.stall)
    socket?.pause()
    setTimeout(() => socket?.resume(), command.ms)
  }
}).on("close", () => process.exit(0))
