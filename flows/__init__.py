"""Thin Prefect flows over the three jobs. The only place that imports prefect."""
