"""Lets ``python -m shmstore`` run the command line."""

import sys

from shmstore.cli import main

if __name__ == "__main__":
    sys.exit(main())
