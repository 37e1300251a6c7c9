"""The command line: ``python -m flows.flink``."""

import sys

from flows.flink.cluster import main
from runtime.command_line import run_main

if __name__ == "__main__":
    sys.exit(run_main(main))
