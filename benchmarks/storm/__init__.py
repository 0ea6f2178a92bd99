"""A seeded storm of real faults on a job in the lab, and what the job kept of its pace (`python -m benchmarks.storm`)."""
