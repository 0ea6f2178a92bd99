"""The pre-flight gate: whether hosts keep, when they are disturbed, what a job relies on (GM-40, PF-1 to PF-7)."""
