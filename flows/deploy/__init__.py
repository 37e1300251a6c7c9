"""What a Prefect server is told: pools, deployments, automations; and our part of its commands.

It imports no flow: deployments name theirs by path.
"""
