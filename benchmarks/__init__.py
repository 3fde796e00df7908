"""Every claim measured beside a peer in the same run; `python -m benchmarks` runs all."""

import os
import sys
from pathlib import Path

# A task file imports its neighbours.
sys.path.insert(0, str(Path(__file__).resolve().parent / "tasks"))
# No telemetry: it would be charged to the peer.
os.environ.setdefault("NNCF_CI", "1")
