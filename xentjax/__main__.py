"""``python -m xentjax``: the command line."""

import sys

from xentjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
