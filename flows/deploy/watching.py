"""Prints the reason of a failure as the last line of ``prefect deployment run … --watch``."""

from __future__ import annotations

import sys
from typing import Any


def print_failure_reason() -> None:
    """Patches the command to print the message of the run's state; Prefect prints only its name."""
    from prefect.cli import flow_runs_watching

    watch_flow_run: Any = flow_runs_watching.watch_flow_run

    async def watch(*arguments: Any, **named: Any) -> Any:
        run = await watch_flow_run(*arguments, **named)
        if run.state is None or run.state.is_completed() or not run.state.message:
            return run
        print(f"Flow run finished in state {run.state.name!r}.")
        # Prefect's own messages may have several lines.
        print(f"error: {' '.join(run.state.message.removeprefix('error: ').split())}")
        sys.exit(1)

    flow_runs_watching.watch_flow_run = watch
