"""Tasks that ``ingest-train-infer`` adds to the three jobs: report, drift, masks and others.

They import ``flows.lifecycle``, never a flow.
"""
