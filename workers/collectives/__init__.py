"""Moving gradients: the bucket plan, staging, and exchanges that can be abandoned."""
