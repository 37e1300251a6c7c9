"""The network, its input, its training and its registration in MLflow."""
