"""`python -m orchestrator` is the `quantarion` command."""

import sys

from orchestrator.cli import main

sys.exit(main())
