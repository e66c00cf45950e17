"""Makes the schema ``pgbus``, or upgrades it to version 8 and beyond, with the numbered migrations in ``database/sql``.

A release with further numbered migrations has a further migration here. What has been applied in another way, as by
``pgbus-gevent migrate``, is left as it is.
"""

from __future__ import annotations

from django.db import migrations

from ..schema import bring_up_to_date, keep


class Migration(migrations.Migration):  # type: ignore[misc]  # Django has no types
    """Outside a transaction of Django, because it has one of its own, which waits for other sessions without blocking them."""

    atomic = False
    initial = True
    dependencies: list[tuple[str, str]] = []
    operations = [migrations.RunPython(bring_up_to_date, keep)]
