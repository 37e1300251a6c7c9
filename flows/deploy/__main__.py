"""The command line: ``python -m flows.deploy``."""

import sys

from flows.deploy.deployments import main
from runtime.command_line import run_main

if __name__ == "__main__":
    sys.exit(run_main(main))
