"""What happens around the work of any run: its name, paths, processes, progress, retries, end.

It imports no flow and no task.
"""
