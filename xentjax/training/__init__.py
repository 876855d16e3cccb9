"""Training on data: mini-batches, runs and what they leave on disk."""
