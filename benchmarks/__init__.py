"""Measurements that take more than one machine, or more time, than the benchmark of the package."""
