"""For testing applications: pytest fixtures on a real PostgreSQL, a real server, a real client."""
