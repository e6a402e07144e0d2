"""torchrsm: Recurrent Sparse Memory, a predictor of streams that learns on line with local errors."""

__version__ = "0.1.0"
