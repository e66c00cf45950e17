"""Plain values and functions. Nothing here does I/O, reads a clock, or imports gevent or psycopg2."""
