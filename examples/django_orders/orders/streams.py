"""Who may watch which stream."""

from pgbus_gevent import Subscriber


def authorize(request, stream):
    """Whoever is logged in may watch, and the staff also gets what is only for the staff."""
    if not request.user.is_authenticated:
        return False
    return Subscriber(owner=request.user.username, labels={"staff"} if request.user.is_staff else set())
