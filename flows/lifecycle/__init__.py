"""Life cycle of a run: its name, paths, job processes, progress, retries, artifacts, final state.

It imports no flow and no task.
"""
