"""From images and a model to published tables: ``python -m beam.infer``.

``pipeline`` holds the graph. It imports ``beam.shared`` and ``beam.runners``, not ``beam.ingest``.
"""
