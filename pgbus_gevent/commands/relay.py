"""The command ``relay``: a worker without clients that publishes to Redis while it is the steward."""

from __future__ import annotations

import argparse
import logging

from ..errors import InvalidSetting
from ..hosts.logs import configure
from ..hosts.running import Stopper, kept_alive
from ..hosts.service_manager import ServiceManager
from ..settings.table import Settings
from ..settings.wake import hide, is_redis
from ..streamer.instance import Instance
from ..web.backstage import backstage_of
from .program import Command, database_settings, say

_ABOUT = """\
Relay messages to Redis, and do what else is to be done once for all workers. It serves no clients.

`serve --wake redis://…` does the same beside serving, if none of these runs. Run this command, on two machines, if the relay should
have a process of its own. It ends with SIGTERM or Ctrl-C; another process then takes its place."""

_EXAMPLES = """\
examples:
  pgbus-gevent relay --wake redis://cache.internal --database-url postgresql://server@db.example/shop"""


def _add(parser: argparse.ArgumentParser) -> None:
    pass


def _relay(arguments: argparse.Namespace, settings: Settings) -> int:
    if not is_redis(settings.wake):
        raise InvalidSetting(
            "wake", hide(settings.wake), "give the URL of a Redis, such as redis://host, in PGBUS_WAKE or --wake"
        )
    manager = ServiceManager()  # before any child is started
    configure(settings.log_level, settings.log_format)
    logging.getLogger("pgbus_gevent.relay").info("the relay starts")
    with database_settings(settings) as settings:
        stopper = Stopper(settings.grace)
        stopper.watch_signals()
        instance = Instance(settings, on_failure=stopper.fail)
        instance.steward.only_relays = True
        backstage_of(instance)  # writes the relay's metrics to the roll, where the servers find them
        instance.start()
        say("relaying; send SIGTERM to stop")
        with kept_alive(manager):
            manager.tell("READY=1", "STATUS=relaying")
            stopper.wait()
            manager.tell("STOPPING=1", "STATUS=leaving the relay to another process")
            instance.shutdown()
    return stopper.status


RELAY = Command(
    "relay",
    "relay messages to Redis, without serving clients",
    _ABOUT,
    _EXAMPLES,
    ("database_url", "listen_url", "data_dir", "wake", "migrate"),
    _add,
    _relay,
    log_level="info",  # _relay configures it, because it runs for as long as a server
)
