"""`python -m runhistd`: the same as the installed command."""

import sys

from runhistd.cli import main

if __name__ == "__main__":
    sys.exit(main())
