"""A Django project in one module: settings, URLs and the ASGI application. It runs in the peers' environment."""

import os

from psycopg.conninfo import conninfo_to_dict

_url = conninfo_to_dict(os.environ["PEERS_DATABASE_URL"])
SECRET_KEY = "the secret of the comparison"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "django_app"
USE_TZ = True
INSTALLED_APPS = ["daphne", "django.contrib.auth", "django.contrib.contenttypes", "django_eventstream"]
EVENTSTREAM_STORAGE_CLASS = "django_eventstream.storage.DjangoModelStorage"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _url["dbname"],
        "USER": _url.get("user", ""),
        "PASSWORD": _url.get("password", ""),
        "HOST": _url.get("host", ""),
        "PORT": _url.get("port", ""),
    }
}
if grip := os.environ.get("PEERS_GRIP_URL"):
    GRIP_URL = grip
    MIDDLEWARE = ["django_grip.GripMiddleware"]


def send(request, stream):
    from django.http import HttpResponse
    from django_eventstream import send_event

    send_event(stream, "message", request.body.decode())
    return HttpResponse(status=204)


def current(request, stream):
    from django.http import HttpResponse
    from django_eventstream import get_current_event_id

    return HttpResponse(get_current_event_id([stream]), content_type="text/plain")


def __getattr__(name):
    """Make the URLs and the application when they are asked for, since both need the settings above."""
    if name == "urlpatterns":
        import django_eventstream
        from django.urls import include, path

        return [
            path("send/<stream>", send),
            path("current/<stream>", current),
            path("events/<channel>/", include(django_eventstream.urls)),
        ]
    if name == "application":
        from django.core.asgi import get_asgi_application

        return get_asgi_application()
    raise AttributeError(name)
