"""The two Apache Beam jobs: ``beam.ingest`` and ``beam.infer``.

The graphs are in ``ingest``, ``infer``, ``listing``, ``tfrecords`` and ``parquet``; the work is in
plain functions beside them, which do not import Beam.
"""

import logging

from beam.memory import tune_malloc

tune_malloc()
# Beam says on every import, through the root logger, that Google's client is not installed.
logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("apitools not found"))
