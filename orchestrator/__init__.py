"""The control plane: decides, and never touches a tensor. May import `workers`."""

import os

# gRPC writes about connections that end to stderr, in the middle of what a person reads; it looks at this once.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
