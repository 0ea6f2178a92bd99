"""`paced.py`, and a child of each rank that nothing but a kill ends: what a user's program may leave behind."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

subprocess.Popen(["sleep", "infinity"], start_new_session=True)
runpy.run_path(str(Path(__file__).with_name("paced.py")), run_name="__main__")
