"""Analysis of published tables: SQL views, HTML report, overlays, masks as files."""
