"""Flink clusters: ``python -m flows.flink up|down|status|jobmanager|taskmanager``.

It imports no flow.
"""
