"""One file per peer: how it is started, and the program its workers run."""
