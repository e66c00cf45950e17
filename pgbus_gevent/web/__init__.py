"""The HTTP side: requests, answers, and the WSGI application."""
