"""The command line: ``python -m flows.local``."""

import sys

from flows.local.services import main
from runtime.command_line import run_main

if __name__ == "__main__":
    sys.exit(run_main(main))
