"""The engines a pipeline runs on: Beam's options, local workers, Flink, Spark.

It knows nothing of the jobs, and imports only ``runtime`` and ``beam.tools``.
"""
