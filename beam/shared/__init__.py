"""What both jobs need: listing and pairing files, staging, atomic writes, progress, crash journal.

It imports neither job.
"""
