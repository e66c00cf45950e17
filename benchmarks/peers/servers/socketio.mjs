// Socket.IO with connection state recovery, and a route that publishes. Argument: the port.
import http from "node:http"
import { Server } from "socket.io"

const server = http.createServer((request, response) => {
  if (request.method !== "POST") return
  let body = ""
  request.setEncoding("utf8")
  request.on("data", (part) => (body += part))
  request.on("end", () => {
    io.to(request.url.slice("/send/".length)).emit("message", body)
    response.writeHead(204).end()
  })
})
const io = new Server(server, { connectionStateRecovery: {} })
io.on("connection", (socket) => {
  // A socket that was recovered is in its rooms already.
  if (!socket.recovered) socket.join(socket.handshake.query.stream)
})
server.listen(Number(process.argv[2]), "127.0.0.1")
process.on("SIGTERM", () => io.close(() => process.exit(0)))
