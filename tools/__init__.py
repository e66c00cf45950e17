"""Programs for contributors that the package does not need."""
