"""`python -m dtvla.cli`: the `dtvla` command."""

import sys

from dtvla.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
