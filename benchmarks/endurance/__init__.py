"""Attacks on a real server that last: churn, clients that stall, silent connections, floods of names, a lack of descriptors."""
