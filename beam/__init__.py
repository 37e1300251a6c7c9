"""The two Apache Beam jobs: ``beam.ingest`` and ``beam.infer``.

The graph of each is in its ``pipeline``; what both need is in ``shared``, where they run in
``runners``. The modules here are commands: ``parity``, ``prune``, ``tools``, ``verify``.
"""

import logging

from beam.runners.malloc import tune_malloc

tune_malloc()
# On every import, Beam logs through the root logger that Google's client is not installed.
logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("apitools not found"))
