"""``python -m janus.cli``."""

import sys

from janus.cli import main

if __name__ == "__main__":
    sys.exit(main())
