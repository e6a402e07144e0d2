"""Models and tensors on disk."""
