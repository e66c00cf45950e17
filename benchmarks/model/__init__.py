"""A model of a fleet: how many statements, wakes and bytes it costs, and how late messages are, at sizes that nobody measured.

``constants.json`` has the costs, each with the measurement that it comes from. ``points.json`` has other measurements, which the
model must predict. ``python -m benchmarks.model`` has the commands.
"""
