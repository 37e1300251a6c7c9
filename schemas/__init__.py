"""The ground of the pipeline: plain data, its rules and its bytes. Imports nothing of ours."""
