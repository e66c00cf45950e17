"""Parts of publishing that the Bus uses: coalescing and presence."""
