"""The data plane: trains, and never decides who is a member. Never imports `orchestrator`."""
