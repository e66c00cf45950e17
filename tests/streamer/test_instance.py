"""Several Instances in one process."""

from __future__ import annotations

import pytest

from pgbus_gevent import Settings, streamer
from pgbus_gevent.errors import InvalidArgument
from pgbus_gevent.streamer.instance import Instance


def test_a_throwaway_instance_leaves_the_processs_own_alone(pgbus_settings: Settings) -> None:
    streamer.reset()
    own = streamer.current(settings=pgbus_settings)
    try:
        other = Instance(pgbus_settings).start()
        other.shutdown()
        assert streamer.current() is own
        assert own.alive
    finally:
        streamer.reset()


def test_settings_together_with_keywords_are_refused_because_one_would_be_ignored(pgbus_settings: Settings) -> None:
    with pytest.raises(InvalidArgument, match="Instance takes either settings="):
        Instance(pgbus_settings, heartbeat=5)
