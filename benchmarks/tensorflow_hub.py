"""Stub of tensorflow_hub, which Beam's TFModelHandlerNumpy imports for this one function."""


def resolve(path):
    """A local path resolves to itself."""
    return path
