"""Registers pools, deployments and automations on a Prefect server; plugin for its command line.

It imports no flow: deployments name theirs by path.
"""
