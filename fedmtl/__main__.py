"""`python -m fedmtl` is the `fedmtl` command."""

import sys

from fedmtl.cli import main

sys.exit(main())
