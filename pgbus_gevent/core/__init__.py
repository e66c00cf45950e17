"""Plain values and functions: no I/O, no clock, no gevent, no psycopg2."""
