"""The machine below the pipeline: files and stores, processes, command lines, MLflow's store.

It knows nothing of images, classes or tables, and imports no other package of the project.
"""
