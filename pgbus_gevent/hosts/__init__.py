"""Hosts: the WSGI servers that run the application, and what ``serve`` consists of."""
