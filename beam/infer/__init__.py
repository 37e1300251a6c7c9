"""The inference job: images and a model to published Parquet tables, ``python -m beam.infer``.

``pipeline`` holds the graph. It imports ``beam.shared`` and ``beam.runners``, not ``beam.ingest``.
"""
