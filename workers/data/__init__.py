"""Which samples a rank reads, how they are read, and the record of what was read."""
