"""HTTP: the WSGI application, its requests and its answers."""
