"""`python -m runhistd.demo NAME` is one of the demo's engines; without a name it is the demo."""

from __future__ import annotations

import sys

from runhistd.demo import main
from runhistd.demo.engines import run_engine

if __name__ == "__main__":
    sys.exit(run_engine(sys.argv[1]) if len(sys.argv) > 1 else main())
