"""Which hosts take part in a job: measured agreement, a score of it, and what follows (GM-1 to GM-43)."""
