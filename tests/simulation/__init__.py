"""The simulator: whole workers under a virtual clock, on a model of the database, judged by an oracle. See docs/simulation.md."""
