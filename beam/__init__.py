"""The two Apache Beam jobs: ``beam.ingest`` and ``beam.infer``.

Each job has its Beam graph in ``pipeline``. ``shared`` holds what both jobs need, ``runners`` the
engines they run on. The modules here are commands: ``parity``, ``prune``, ``tools``, ``verify``.
"""

import logging

from beam.runners.malloc import tune_malloc

tune_malloc()
# Beam warns on every import that Google's client is missing, through the root logger.
logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("apitools not found"))
