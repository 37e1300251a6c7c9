"""Contracts: configurations, taxonomies, records, manifests, table schemas, statistics, names.

Plain data and its rules; it imports only ``runtime``.
"""
