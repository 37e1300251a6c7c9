"""Where a pipeline runs: Beam's options, local workers, Flink, Spark.

It knows nothing of what the jobs do, and imports only ``runtime`` and ``beam.tools``.
"""
