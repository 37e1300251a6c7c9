"""Servers and workers of this machine: ``python -m flows.local up|down|status``, or `make up`.

It imports ``flows.deploy`` and ``runtime``, never a flow.
"""
