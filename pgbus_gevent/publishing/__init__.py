"""What publishing has beside the bus."""
