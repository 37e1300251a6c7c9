"""The network, its input, its training and its place in MLflow."""
