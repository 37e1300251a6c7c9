"""Thin Prefect flows over the three jobs; the only package that imports prefect."""

import logging

from runtime.errors import UserError


def _without_traceback(record: logging.LogRecord) -> bool:
    """Removes the traceback from the log record of a ``UserError``; its message is enough."""
    if record.exc_info and isinstance(record.exc_info[1], UserError):
        record.exc_info = None
    return True


# Prefect logs a run's exceptions through these, with a traceback that is of no use to users.
for _name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine", "prefect.flow_engine"):
    logging.getLogger(_name).addFilter(_without_traceback)
