"""The peers. Each module has adapters of one kind."""

from __future__ import annotations

from .base import Peer
from .django_eventstream import DjangoEventstream, DjangoPushpin
from .durable_streams import DurableStreams
from .flask_sse import FlaskSse
from .listen import Fanout, Reread
from .nchan import Nchan, NchanRedis
from .ours import Ours
from .pg_sse import PgSse
from .socketio import SocketIo
from .sse_channel import SseChannel

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Ours(),
        PgSse(),
        DurableStreams(),
        DjangoEventstream(),
        DjangoPushpin(),
        Nchan(),
        NchanRedis(),
        SocketIo(),
        SseChannel(),
        FlaskSse(),
        Reread(),
        Fanout(),
    )
}
"""All peers by name, in the order of the tables."""
