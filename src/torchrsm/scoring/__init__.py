"""Scores: metrics of frames, the physics of dreams, evaluation of any predictor."""
