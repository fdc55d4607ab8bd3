"""What runs on the workers: networks, data, the training loop, checkpoints and evaluation."""
