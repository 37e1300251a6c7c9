"""The two Apache Beam jobs: ``beam.ingest`` and ``beam.infer``.

The graphs are in ``ingest`` and ``infer``, their transforms in ``listing``, ``tfrecords``,
``pictures``, ``spool``, ``evaluation`` and ``parquet``; the work is in plain functions beside them.
"""

import logging

from beam.memory import tune_malloc

tune_malloc()
# On every import, Beam logs through the root logger that Google's client is not installed.
logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("apitools not found"))
