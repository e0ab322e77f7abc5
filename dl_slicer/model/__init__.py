"""Networks and their weights, checkpoints, devices and precision, evaluation."""
