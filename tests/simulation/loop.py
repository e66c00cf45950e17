"""An event loop for gevent without time and without sockets: a seeded generator decides what runs next, and time is a number."""

from __future__ import annotations

import heapq
import sys
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

START = 1_000.0
"""The monotonic time at which a simulation begins, in seconds."""

EPOCH = 1_790_000_000.0
"""Unix time minus monotonic time."""

MOST = 3_000_000

_LAST = -2  # the lowest priority of a watcher, as of libev


class Clock:
    """The time. It moves when the loop waits, and a little with each look and each step, as on a real machine."""

    def __init__(self) -> None:
        self.now = START
        self.look = 0.0
        """Seconds that a look at the clock costs."""
        self.step = 0.0
        """Seconds that a step of a greenlet costs."""
        self.wall = EPOCH
        """The difference between wall clock and monotonic clock; it changes if the wall clock is set."""

    def monotonic(self) -> float:
        """Return the monotonic time."""
        self.now += self.look
        return self.now

    def time(self) -> float:
        """Return the Unix time."""
        return self.monotonic() + self.wall


CLOCK = Clock()


class Callback:
    """A function that the loop is to call, as gevent expects it."""

    __slots__ = ("args", "callback")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args: tuple[Any, ...] | None = args

    def stop(self) -> None:
        """Do not call it."""
        self.callback = self.args = None

    close = stop

    def __bool__(self) -> bool:
        return self.args is not None

    @property
    def pending(self) -> bool:
        """Whether it is to be called."""
        return self.callback is not None


class Watcher:
    """What all watchers have."""

    __slots__ = ("args", "callback", "loop")

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.callback: Callable[..., object] | None = None
        self.args: tuple[Any, ...] = ()

    def start(self, callback: Callable[..., object], *args: Any, **_: Any) -> None:
        """Call ``callback`` when it happens."""
        self.callback, self.args = callback, args

    def stop(self) -> None:
        """Call nothing any more."""
        self.callback, self.args = None, ()

    def close(self) -> None:
        """Stop for good."""
        self.stop()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def active(self) -> bool:
        """Whether it is started."""
        return self.callback is not None

    pending = False
    ref = True


class Timer(Watcher):
    """A watcher of the clock."""

    __slots__ = ("after", "ends", "priority", "turn")

    def __init__(self, loop: VirtualLoop, after: float, priority: int | None) -> None:
        super().__init__(loop)
        self.after = after
        self.priority = priority or 0
        self.turn = 0
        self.ends = 0.0

    def start(self, callback: Callable[..., object], *args: Any, **_: Any) -> None:
        super().start(callback, *args)
        self.turn += 1
        self.ends = CLOCK.now + max(0.0, self.after)
        self.loop.set(self)

    def again(self, callback: Callable[..., object], *args: Any, **_: Any) -> None:
        """Start anew."""
        self.start(callback, *args)

    def stop(self) -> None:
        super().stop()
        self.turn += 1


class Io(Watcher):
    """A watcher of a descriptor of the simulation."""

    __slots__ = ("events", "fd", "scheduled")

    def __init__(self, loop: VirtualLoop, fd: int, events: int) -> None:
        super().__init__(loop)
        self.fd = fd
        self.events = events
        self.scheduled: Callback | None = None

    def start(self, callback: Callable[..., object], *args: Any, **_: Any) -> None:
        super().start(callback, *args)
        self.loop.watch(self)

    def stop(self) -> None:
        if self.callback is not None:
            self.loop.unwatch(self)
        super().stop()
        if self.scheduled is not None:
            self.scheduled.stop()
            self.scheduled = None

    def ready(self) -> None:
        """Note that the descriptor is ready."""
        if self.scheduled is None:
            self.scheduled = self.loop.run_callback(self._fire)

    def _fire(self) -> None:
        self.scheduled = None
        if self.callback is not None:
            self.callback(*self.args)
            # A level, not an edge: as long as the descriptor is ready, it is called again.
            if self.callback is not None and self.loop.is_ready(self.fd, self.events):
                self.ready()


class VirtualLoop:
    """Has what gevent's hub needs of a loop.

    Callbacks run in batches, as in libev: first all that were there, then the timers that are due. With ``shuffle``, those of a
    batch run in an order that ``random`` draws.
    """

    MAXPRI, MINPRI = 2, _LAST
    approx_timer_resolution = 1e-5
    default = True
    destroyed = False
    starting_timer_may_update_loop_time = False

    def __init__(self, *_: object, **__: object) -> None:
        self.random = Random(0)
        self.shuffle = False
        self.error_handler: Any = None
        self.steps = 0
        self.most = MOST
        """After how many steps it ends: then greenlets wake each other for ever, and no time passes."""
        self._callbacks: deque[Callback] = deque()
        self._timers: list[tuple[float, int, int, int, Timer]] = []
        self._count = 0
        self._watchers: dict[int, list[Io]] = {}
        self.levels: dict[int, Callable[[], int]] = {}
        """For each descriptor of the simulation, a function that returns for which events it is ready."""

    # what gevent calls

    def run_callback(self, callback: Callable[..., object], *args: Any) -> Callback:
        """Have ``callback`` called soon."""
        found = Callback(callback, args)
        self._callbacks.append(found)
        return found

    run_callback_threadsafe = run_callback

    def timer(self, after: float, repeat: float = 0.0, ref: bool = True, priority: int | None = None) -> Timer:
        """Return a watcher of the clock."""
        return Timer(self, after, priority)

    def io(self, fd: int, events: int, ref: bool = True, priority: int | None = None) -> Io:
        """Return a watcher of a descriptor of the simulation."""
        return Io(self, fd, events)

    def fork(self, ref: bool = True, priority: int | None = None) -> Watcher:
        """Return a watcher of something that never happens."""
        return Watcher(self)

    async_ = prepare = check = idle = fork

    def now(self) -> float:
        """Return the time."""
        return CLOCK.now

    def update_now(self) -> None:
        """Do nothing: the time is always up to date."""

    update = update_now

    def destroy(self) -> None:
        """Do nothing: the process ends."""

    def handle_error(self, context: object, kind: Any, value: Any, trace: Any) -> None:
        """Pass an exception on to the hub."""
        if self.error_handler is None:
            sys.excepthook(kind, value, trace)
        else:
            self.error_handler.handle_error(context, kind, value, trace)

    def _format(self) -> str:
        return "virtual"

    # what watchers call

    def set(self, timer: Timer) -> None:
        """Have a timer end. Timers that end at the same time, end in an order that is drawn."""
        self._count += 1
        tie = self.random.getrandbits(16) if self.shuffle else 0
        heapq.heappush(self._timers, (timer.ends, tie, self._count, timer.turn, timer))

    def watch(self, watcher: Io) -> None:
        """Begin to watch a descriptor."""
        self._watchers.setdefault(watcher.fd, []).append(watcher)
        if self.is_ready(watcher.fd, watcher.events):
            watcher.ready()

    def unwatch(self, watcher: Io) -> None:
        """Cease to watch a descriptor."""
        there = self._watchers.get(watcher.fd, [])
        if watcher in there:
            there.remove(watcher)
        if not there:
            self._watchers.pop(watcher.fd, None)

    def is_ready(self, fd: int, events: int) -> bool:
        """Whether a descriptor is ready for one of these events."""
        level = self.levels.get(fd)
        return level is not None and bool(level() & events)

    def changed(self, fd: int) -> None:
        """Look whether a descriptor is ready now."""
        for watcher in list(self._watchers.get(fd, ())):
            if self.is_ready(fd, watcher.events):
                watcher.ready()

    # running

    def run(self, nowait: bool = False, once: bool = False) -> None:
        """Run until nothing remains to be done."""
        while (self._callbacks or self._timers) and self.steps < self.most:
            self._run_callbacks()
            if not self._callbacks:
                self._run_timers()

    def _run_callbacks(self) -> None:
        batch = list(self._callbacks)
        self._callbacks.clear()
        if self.shuffle and len(batch) > 1:
            self.random.shuffle(batch)
        for each in batch:
            self._call(each)

    def _call(self, each: Callback) -> None:
        callback, args = each.callback, each.args
        if callback is None or args is None:
            return
        each.callback = None
        self.steps += 1
        CLOCK.now += CLOCK.step
        try:
            callback(*args)
        except BaseException:
            self.handle_error(each, *sys.exc_info())
        finally:
            each.args = None

    def _run_timers(self) -> None:
        """Go on to the next moment at which a timer ends, and run the timers that end there."""
        timers = self._timers
        while timers and timers[0][4].turn != timers[0][3]:
            heapq.heappop(timers)
        if not timers:
            return
        CLOCK.now = max(CLOCK.now, timers[0][0])
        due: list[Timer] = []
        while timers and timers[0][0] <= CLOCK.now:
            _, _, _, turn, timer = heapq.heappop(timers)
            if timer.turn == turn:
                due.append(timer)
        due.sort(key=lambda timer: -timer.priority)
        for timer in due:
            callback, args = timer.callback, timer.args
            if callback is None or timer.turn < 0:
                continue
            self.steps += 1
            CLOCK.now += CLOCK.step
            timer.stop()
            try:
                callback(*args)
            except BaseException:
                self.handle_error(timer, *sys.exc_info())

    def clear(self) -> None:
        """Forget everything, at the end of a simulation."""
        self._callbacks.clear()
        self._timers.clear()
        self._watchers.clear()
        self.levels.clear()
