"""Proxies in front of a server: nginx and HAProxy with a given configuration, and one that makes faults that those cannot make."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gevent.pool import Pool
from gevent.server import StreamServer
from support import free_port, until
from ways import found


@contextmanager
def nginx_with(folder: Path, upstream: int, location: str, *, listen: str = "", http: str = "") -> Iterator[int]:
    """Run nginx before the server at port ``upstream``, and yield its port.

    ``location`` is what its location / contains, ``listen`` what follows the address, and ``http`` what stands around the server.
    """
    port = free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{ worker_connections 256; }}\nhttp {{\naccess_log off;\n{paths}{http}\n"
        f"upstream pgbus {{ server 127.0.0.1:{upstream}; }}\n"
        f"server {{ listen 127.0.0.1:{port} {listen};\nlocation / {{\n{location}\n}}\n}}\n}}\n"
    )
    program = [found("nginx"), "-p", str(folder), "-e", "stderr", "-c", "nginx.conf"]
    with running(program, folder / "nginx.log", port):
        yield port


NGINX = "proxy_pass http://pgbus; proxy_http_version 1.1; proxy_set_header Host $host; proxy_read_timeout 60s;"
"""What a location for streams needs."""


@contextmanager
def haproxy_with(
    folder: Path,
    upstream: int,
    backend: str,
    *,
    bind: str = "",
    more: str = "option http-no-delay",
    timeout: str = "60s",
) -> Iterator[int]:
    """Run HAProxy before the server at port ``upstream``, and yield its port.

    ``backend`` and ``more`` are further lines of its backend and its defaults, ``bind`` is what follows its address, and
    ``timeout`` that for the server.
    """
    port = free_port()
    (folder / "haproxy.cfg").write_text(
        f"defaults\n  mode http\n  {more}\n  timeout connect 5s\n  timeout client 60s\n"
        f"  timeout server {timeout}\nfrontend web\n  bind 127.0.0.1:{port} {bind}\n  default_backend pgbus\n"
        f"backend pgbus\n  {backend}\n  server one 127.0.0.1:{upstream}\n"
    )
    with running([found("haproxy"), "-f", str(folder / "haproxy.cfg")], folder / "haproxy.log", port):
        yield port


@contextmanager
def running(command: list[str], log: Path, port: int) -> Iterator[None]:
    """Run a program for a block, which begins when the program accepts connections at ``port``."""
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)

    def accepts() -> bool:
        assert process.poll() is None, log.read_text()
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(accepts, f"{command[0]} accepts")
        yield
    finally:
        process.kill()
        process.wait(10)


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 and its key, and return their files."""
    openssl = found("openssl")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def _same(data: bytes) -> bytes:
    return data


class FaultProxy:
    """Passes each connection on to the server at ``port``, and changes what passes.

    ``request`` changes the head of a request. It arrives as HTTP/1.0, so that the answer has no chunks. ``head`` changes the head
    of an answer, and ``body`` each piece of its body as it comes; empty pieces are left out. With ``cache``, the answer to a path
    and query that was requested before is what was recorded then.
    """

    def __init__(
        self,
        port: int,
        *,
        request: Callable[[bytes], bytes] = _same,
        head: Callable[[bytes], bytes] = _same,
        body: Callable[[bytes], bytes] = _same,
        cache: bool = False,
    ) -> None:
        self._upstream = ("127.0.0.1", port)
        self._request, self._head, self._body = request, head, body
        self._cache: dict[bytes, bytes] | None = {} if cache else None
        self._server = StreamServer(("127.0.0.1", 0), self._serve, spawn=Pool())
        self._server.start()
        self.port = int(self._server.server_port)

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0.1)  # and with it the connections whose clients have left

    def _serve(self, client: socket.socket, _: object) -> None:
        try:
            with client, socket.create_connection(self._upstream) as server:
                wanted, _rest = _read_head(client)
                target = wanted.split(b" ")[1] if b" " in wanted else b""
                if self._cache is not None and target in self._cache:
                    client.sendall(self._cache[target])
                    client.recv(1)  # until it leaves
                    return
                server.sendall(self._request(wanted.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)))
                head, rest = _read_head(server)
                self._pass(client, target, self._head(head))
                while True:
                    if piece := self._body(rest) if rest else b"":
                        self._pass(client, target, piece)
                    rest = server.recv(65536)
                    if not rest:
                        return
        except OSError:
            pass  # one of them has left

    def _pass(self, client: socket.socket, target: bytes, data: bytes) -> None:
        if self._cache is not None:
            self._cache[target] = self._cache.get(target, b"") + data
        client.sendall(data)


def _read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    """Return the head of a message, and what came of its body. Raises OSError if the connection ends before."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            raise ConnectionError("the connection has ended")
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest
