"""``python -m midflight`` is ``midflight``."""

import sys

from midflight.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
