"""The settings: their table, what their values mean, how they travel."""
