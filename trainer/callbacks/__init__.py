"""What is attached to the training loop: reporting, checkpoints, control."""
