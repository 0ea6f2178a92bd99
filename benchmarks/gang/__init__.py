"""Gangs of real processes without Ray: coordinator, agents and workers, forked by a zygote, in a lab where there is one.

All of these are the real ones, and so are gRPC, Unix sockets, gloo and torch; only who starts them is not. The tests that
break jobs (`tests/gang`) and the fault storm (`benchmarks.storm`) build on it.
"""
