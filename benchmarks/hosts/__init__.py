"""A small data centre in network namespaces, with faults that are drawn at random, and a ledger that judges it."""
