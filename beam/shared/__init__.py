"""What both jobs need: the files of a source, staging, atomic writes, progress, crashed decoders.

It imports neither job.
"""
