"""Other servers beside ours: ``speed`` has their adapters for the benchmark; the modules here count what arrives under faults."""
