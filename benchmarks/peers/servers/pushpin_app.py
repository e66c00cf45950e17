"""Pushpin in front of the Django project, with zurl, which Pushpin uses. It starts all, and ends all at SIGTERM.

It runs in the peers' environment. Arguments: a directory, the port of Pushpin, that of Django, and that of Pushpin's control.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

CONFIGURATION = """\
[global]
include={{libdir}}/internal.conf
rundir={directory}/pushpin
ipc_prefix=pushpin-
port_offset=0
[runner]
services=condure,pushpin-proxy,pushpin-handler
http_port=127.0.0.1:{port}
logdir={directory}/pushpin
log_level=1
client_buffer_size=8192
client_maxconn=1000
condure_bin=condure
[proxy]
zurl_out_specs=ipc://{directory}/pushpin/zurl-in
zurl_out_stream_specs=ipc://{directory}/pushpin/zurl-in-stream
zurl_in_specs=ipc://{directory}/pushpin/zurl-out
routesfile={directory}/routes
sig_key=changeme
[handler]
push_in_spec=ipc://{directory}/pushpin/push
push_in_sub_specs=ipc://{directory}/pushpin/sub
push_in_http_addr=127.0.0.1
push_in_http_port={control}
push_in_http_max_headers_size=10000
push_in_http_max_body_size=1000000
stats_spec=ipc://{directory}/pushpin/stats
command_spec=ipc://{directory}/pushpin/command
message_rate=2500
message_hwm=25000
message_wait=5000
id_cache_ttl=60
connection_subscription_max=20
subscription_linger=60
"""

ZURL = """\
[General]
in_spec=ipc://{directory}/pushpin/zurl-in
in_stream_spec=ipc://{directory}/pushpin/zurl-in-stream
out_spec=ipc://{directory}/pushpin/zurl-out
in_req_spec=ipc://{directory}/pushpin/zurl-req
defpolicy=allow
"""


def main() -> None:
    """Start all, and wait for the first to end."""
    directory, port, backend, control = sys.argv[1:]
    Path(directory, "pushpin").mkdir(exist_ok=True)
    Path(directory, "routes").write_text(f"* 127.0.0.1:{backend}\n")
    configuration = Path(directory, "pushpin.conf")
    configuration.write_text(CONFIGURATION.format(directory=directory, port=port, control=control))
    zurl = Path(directory, "zurl.conf")
    zurl.write_text(ZURL.format(directory=directory))
    os.environ["PEERS_GRIP_URL"] = f"http://127.0.0.1:{control}"
    where = ["-b", "127.0.0.1", "-p", backend]
    programs = [
        subprocess.Popen([sys.executable, "-m", "daphne", "-v", "0", *where, "django_app:application"]),
        subprocess.Popen(["zurl", f"--config={zurl}"]),
        subprocess.Popen(["pushpin", "--config", str(configuration)]),
    ]

    def end(*_: object) -> None:
        for process in programs:
            process.terminate()

    signal.signal(signal.SIGTERM, end)
    for process in programs:
        process.wait()


if __name__ == "__main__":
    main()
