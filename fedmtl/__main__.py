"""`python -m fedmtl` is the `fedmtl` command."""

import sys

from fedmtl.cli import main

if __name__ == "__main__":  # else to import it would run a command
    sys.exit(main())
