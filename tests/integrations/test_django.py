"""The Django app, and its sample project as its readers start it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import psycopg2.extensions as ext
import pytest
from database_parts import opened_sessions
from page_parts import block_of
from program_parts import ROOT, Program, program, tag_in
from raw_http import ask

from pgbus_gevent.database.schema import migrations
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases

PROJECT = ROOT / "examples/django_orders"
FORM = "application/x-www-form-urlencoded"
pytestmark = pytest.mark.program


class Site:
    """The sample project on a database of its own. ``manage`` runs its commands in forks of one program."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        parts = ext.parse_dsn(url)
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
        self.variables = {names[name]: str(value) for name, value in parts.items() if name in names}
        self.variables |= {"PYTHONPATH": f"{ROOT}:{PROJECT}", "SECRET_KEY": "a key of the tests", "PGBUS_SECRET": ""}
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PGBUS_")}
        self._forks = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("manage_forks.py")), str(PROJECT / "manage.py")],
            cwd=folder,
            env={**environ, **self.variables, "DJANGO_SUPERUSER_PASSWORD": "pw"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def manage(self, *arguments: str) -> str:
        """Run manage.py to its end, and return what it prints."""
        assert self._forks.stdin and self._forks.stdout
        self._forks.stdin.write(f"{json.dumps(arguments)}\n")
        self._forks.stdin.flush()
        status, printed, complaint = json.loads(self._forks.stdout.readline())
        assert status == 0, printed + complaint
        return str(printed)

    def close(self) -> None:
        self._forks.communicate()


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The project after the first commands of its page, with a superuser ada and a customer bob."""
    url = pgbus_databases.make_empty()
    site = Site(url, tmp_path_factory.mktemp("django"))
    commands = block_of("examples/django_orders/README.md", "start").splitlines()
    assert commands == [f"python manage.py {rest}" for rest in ("migrate", "createsuperuser", "pgbus serve")]
    site.manage("migrate")
    site.manage("createsuperuser", "--noinput", "--username", "ada", "--email", "a@example.org")
    site.manage(
        "shell", "-c", "from django.contrib.auth.models import User; User.objects.create_user('bob', password='pw')"
    )
    yield site
    site.close()
    pgbus_databases.drop(url)


def rows(site: Site, statement: str) -> list[tuple[object, ...]]:
    with opened_sessions(site.url) as opener:
        return opener().run(statement)


@pytest.fixture
def shop(site: Site) -> Iterator[Program]:
    """The project, served."""
    arguments = [str(PROJECT / "manage.py"), "pgbus", "serve"]
    with program(*arguments, database_url="", cwd=site.folder, **site.variables) as shop:
        yield shop
        assert shop.stop() == 0
        assert "Traceback" not in shop.log


def logged_in(shop: Program, name: str) -> str:
    """Log in, and return the cookie of the session."""
    form = shop.get("/login/")
    token = re.findall(r'name="csrfmiddlewaretoken" value="([^"]+)"', form.body.decode())[0]
    cookie = form.headers["set-cookie"].partition(";")[0]
    body = f"csrfmiddlewaretoken={token}&username={name}&password=pw"
    answer = ask(shop.port, "/login/", "POST", body, Content_Type=FORM, Cookie=cookie)
    assert answer.status == 302, answer
    return answer.headers["set-cookie"].partition(";")[0]


def order(shop: Program, item: str, cookie: str) -> int:
    form = ask(shop.port, "/", Cookie=cookie)
    token = re.findall(r'name="csrfmiddlewaretoken" value="([^"]+)"', form.body.decode())[0]
    cookies = f"{cookie}; {form.headers['set-cookie'].partition(';')[0]}"
    body = f"csrfmiddlewaretoken={token}&item={item}"
    return ask(shop.port, "/order", "POST", body, Content_Type=FORM, Cookie=cookies).status


def page(shop: Program, cookie: str) -> str:
    answer = ask(shop.port, "/", Cookie=cookie)
    assert answer.status == 200, answer
    return answer.body.decode()


def test_the_sample_project_shows_orders_to_users_and_customers_to_the_staff(shop: Program) -> None:
    assert shop.get("/").status == 302, "nobody sees the page without a login"
    ada, bob = logged_in(shop, "ada"), logged_in(shop, "bob")
    path, since = tag_in(page(shop, bob))
    assert ask(shop.port, path).status == 403, "nobody watches without a login"
    with (
        StreamClient(shop.url, path, since=since, headers={"Cookie": ada}) as staff,
        StreamClient(shop.url, path, since=since, headers={"Cookie": bob}) as customer,
    ):
        assert order(shop, "tea", bob) == 204
        assert (staff.next().data, customer.next().data) == ("tea", "tea")
        assert staff.next("customer").data == "tea, for bob"
        assert order(shop, "milk", bob) == 204
        assert customer.next().data == "milk", "no name came in between"
    shown = page(shop, bob)
    assert "<li>tea</li><li>milk</li>" in shown and tag_in(shown)[1] > since
    identities = [re.findall(r'identity="([^"]+)"', page(shop, cookie)) for cookie in (ada, bob)]
    assert all(len(found) == 1 for found in identities) and identities[0] != identities[1]


def test_the_migration_has_made_the_schema_of_this_release(site: Site) -> None:
    newest = migrations()[-1].version
    assert rows(site, "select max(version) from pgbus.migrations") == [(newest,)]
    assert rows(site, "select name from django_migrations where app = 'pgbus'") == [(f"0001_schema_{newest}",)]
    assert "No migrations to apply" in site.manage("migrate")
    # A reversed migration keeps the messages, and applying it again changes nothing.
    site.manage("migrate", "pgbus", "zero")
    assert rows(site, "select max(version) from pgbus.migrations") == [(newest,)]
    site.manage("migrate", "pgbus")


def test_there_is_a_django_migration_for_the_newest_numbered_migration() -> None:
    names = [entry.name for entry in files("pgbus_gevent.django").joinpath("migrations").iterdir()]
    assert f"schema_{migrations()[-1].version}.py" in [name.partition("_")[2] for name in names]


def test_the_commands_work_on_the_database_of_the_project(site: Site) -> None:
    assert f"schema pgbus is already at version {migrations()[-1].version}" in site.manage("pgbus", "migrate")
    # From another program, the command is a child, and its failure an exception.
    code = (
        "from django.core.management import call_command, CommandError\n"
        "call_command('pgbus', 'doctor', '--json')\n"
        "try: call_command('pgbus', 'prune', '--no-such-flag')\n"
        "except CommandError as error: print('refused', error.returncode)"
    )
    printed = site.manage("shell", "-c", code)
    assert '"ok"' in printed and "refused 2" in printed


def test_settings_that_cannot_work_are_found_before_the_first_page(site: Site) -> None:
    code = (
        "from django.conf import settings; from django.core.management import call_command, CommandError\n"
        "def attempt(*command):\n"
        "    try: call_command(*command)\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
        "for value in ({'AUTHORIZE': 'orders.nothere.hook'}, {'AUTHORIZE': 'orders.models.Order.nothing'}, {'RETENTOIN': 1}):\n"
        "    settings.PGBUS = value; attempt('check'); attempt('pgbus', 'doctor')\n"
        "settings.PGBUS = {'AUTHORIZE': 7}; attempt('check')"
    )
    assert "no issues" in site.manage("check")
    printed = site.manage("shell", "-c", code)
    assert "(pgbus.E002) PGBUS['AUTHORIZE'] is 'orders.nothere.hook', which cannot be imported" in printed
    assert "CommandError PGBUS['AUTHORIZE'] is 'orders.nothere.hook', which cannot be imported" in printed
    assert "(pgbus.E001)" in printed and printed.count("did you mean retention") == 2
    assert "(pgbus.E002) PGBUS['AUTHORIZE'] is 7, which is no function" in printed


def test_no_model_of_the_project_lacks_a_migration(site: Site) -> None:
    assert "No changes detected" in site.manage("makemigrations", "--check", "--dry-run")


def test_a_database_that_is_no_postgresql_is_refused_by_name(site: Site) -> None:
    code = (
        "from django.conf import settings; from django.db import connections\n"
        "from pgbus_gevent.django import get_bus\n"
        "bus = get_bus(); assert get_bus() is bus, 'one bus for the process'\n"
        "assert bus.settings.retention == 86400 and not bus.settings.migrate\n"
        "settings.PGBUS = {'PREFIX': '/live'}\n"
        "assert get_bus().settings.prefix == '/live'\n"
        "settings.PGBUS = {'RETENTOIN': 1}\n"
        "try: get_bus()\n"
        "except ValueError as error: print(error)\n"
        "settings.PGBUS = {}; connections['default'].vendor = 'sqlite'\n"
        "try: get_bus()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    printed = site.manage("shell", "-c", code)
    assert "did you mean retention" in printed and "ImproperlyConfigured pgbus needs PostgreSQL" in printed
