"""From raw image/mask pairs to a published dataset of TFRecords: ``python -m beam.ingest``.

``pipeline`` holds the graph. It imports ``beam.shared`` and ``beam.runners``, not ``beam.infer``.
"""
