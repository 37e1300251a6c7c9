"""Tasks and subflows that ``ingest-train-infer`` adds to the three jobs.

They import ``flows.lifecycle``, never a flow.
"""
