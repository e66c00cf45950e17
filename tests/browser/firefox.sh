#!/bin/sh
# Firefox, as Playwright starts it, except that it survives the crash of a tab.
unset MOZ_CRASHREPORTER_SHUTDOWN
exec "$FIREFOX" "$@"
