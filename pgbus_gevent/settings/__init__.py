"""The settings: their table, the parsing of their values, and their forms as flags and variables."""
