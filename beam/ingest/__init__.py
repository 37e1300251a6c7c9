"""The ingest job: raw image/mask pairs to a published TFRecord dataset, ``python -m beam.ingest``.

``pipeline`` holds the graph. It imports ``beam.shared`` and ``beam.runners``, not ``beam.infer``.
"""
