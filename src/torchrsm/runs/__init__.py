"""Runs: their settings, the training loop, the record, the bench."""
