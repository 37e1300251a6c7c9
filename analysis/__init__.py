"""For analysts: SQL views over the published Parquet, overlays, a report. Imports only schemas."""
