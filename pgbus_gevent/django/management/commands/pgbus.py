"""``manage.py pgbus serve | doctor | migrate | prune``: the commands of ``pgbus-gevent``, with the settings of the project."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any, ClassVar

from django.conf import ENVIRONMENT_VARIABLE
from django.conf import settings as project
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from ....errors import PgbusError
from ....settings.passing import environment
from ...project import load_hook, load_settings

_COMMANDS = ("serve", "doctor", "migrate", "prune")
_APPLICATION = "pgbus_gevent.django.wsgi:application"


class Command(BaseCommand):  # type: ignore[misc]  # Django has no types
    """Runs ``python -m pgbus_gevent`` in a new program, because a server has to patch its process before Django is imported."""

    help = "Serve this project with its streams, or look after their database: `pgbus serve --help` shows the flags of a command."
    requires_system_checks: ClassVar[list[str]] = []

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pgbus_command", metavar="command", choices=_COMMANDS, help=", ".join(_COMMANDS))
        parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the flags of the command")

    def handle(self, *args: Any, pgbus_command: str, arguments: list[str], **options: Any) -> None:
        """Run the command in place of this process; if another program called this one, run it as a child.

        Raises CommandError if the child fails, or if the project's settings are refused.
        """
        try:
            load_hook()
            settings = load_settings()
        except (PgbusError, ImproperlyConfigured) as error:
            raise CommandError(str(error)) from error
        application = [_APPLICATION] if pgbus_command == "serve" else []
        command = [sys.executable, "-m", "pgbus_gevent", pgbus_command, *application, *arguments]
        environ = {**environment(settings), ENVIRONMENT_VARIABLE: project.SETTINGS_MODULE}
        if self._called_from_command_line:
            self.stdout.flush()
            os.execve(sys.executable, command, environ)  # nosec B606 # there is no shell; the flags are those of the caller
        status = subprocess.run(command, env=environ, check=False).returncode
        if status:
            raise CommandError(f"pgbus {pgbus_command} has ended with status {status}", returncode=status)
