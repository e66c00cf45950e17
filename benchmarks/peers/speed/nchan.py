"""Runs nginx with nchan and one worker, with a configuration in a temporary directory, until stdin ends."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pgbus_gevent.bench.program import answer

MODULES = (
    "/usr/lib/nginx/modules",
    "/usr/share/nginx/modules",
    "/usr/lib64/nginx/modules",
    "/usr/local/lib/nginx/modules",
)

CONFIGURATION = """\
load_module {module};
daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {directory}/pid;
error_log {directory}/error.log error;
events {{ worker_connections 60000; use epoll; multi_accept on; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  keepalive_requests 10000000;
  nchan_shared_memory_size 256M;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location ~ ^/sub/(.*)$ {{
      nchan_subscriber eventsource;
      nchan_channel_id $1;
      nchan_subscriber_first_message newest;
      nchan_eventsource_ping_interval 15;
    }}
    location ~ ^/pub/(.*)$ {{
      nchan_publisher;
      nchan_channel_id $1;
      nchan_message_buffer_length 1000;
      nchan_message_timeout 10m;
    }}
  }}
}}
"""


def main() -> None:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    module = next((path for path in (Path(place, "ngx_nchan_module.so") for place in MODULES) if path.exists()), None)
    if nginx is None or module is None:
        answer(missing="apt-get install nginx-light libnginx-mod-nchan")
        return
    with tempfile.TemporaryDirectory(prefix="pgbus-bench-nchan-") as directory:
        Path(directory).chmod(0o755)  # if root starts nginx, the worker runs as another user
        port = free_port()
        configuration = Path(directory, "nginx.conf")
        configuration.write_text(CONFIGURATION.format(module=module, directory=directory, port=port))
        process = subprocess.Popen([nginx, "-p", directory, "-e", f"{directory}/error.log", "-c", configuration])
        try:
            wait_for(port, process)
            answer(
                pids=[process.pid, *children(process.pid)],
                port=port,
                path="/sub/{stream}",
                marker="\r\n\r\n",
                way="http",
                options={"port": port, "path": "/pub/{stream}"},
            )
            sys.stdin.read()
        finally:
            process.terminate()
            process.wait(10)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server accepts connections. Raises OSError."""
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise
            time.sleep(0.05)


def children(parent: int) -> list[int]:
    """Return the child processes of nginx, which are its workers."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in found]


if __name__ == "__main__":
    main()
