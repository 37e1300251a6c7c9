"""Thin Prefect flows over the three jobs. The only place that imports prefect."""

import logging

from schemas.errors import UserError


def _without_traceback(record: logging.LogRecord) -> bool:
    """Takes the traceback off a log record of a user's mistake, whose message says it all."""
    if record.exc_info and isinstance(record.exc_info[1], UserError):
        record.exc_info = None
    return True


# Prefect logs what a run raises through these, with a traceback that helps no user.
for _name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine", "prefect.flow_engine"):
    logging.getLogger(_name).addFilter(_without_traceback)
