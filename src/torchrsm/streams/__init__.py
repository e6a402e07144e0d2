"""Streams of frames to learn from: what a stream must do, bouncing balls, arrays, and a border around any of them."""

from torchrsm.streams.array import ArrayStream, FrameSource, load_frames
from torchrsm.streams.bouncing_balls import (
    BallSequences,
    BouncingBalls,
    bouncing_ball_sequences,
    render_balls,
    simulate_balls,
)
from torchrsm.streams.stream import Stream, StreamBatch, check_stream
from torchrsm.streams.transforms import Pad

__all__ = [
    "ArrayStream",
    "BallSequences",
    "BouncingBalls",
    "FrameSource",
    "Pad",
    "Stream",
    "StreamBatch",
    "bouncing_ball_sequences",
    "check_stream",
    "load_frames",
    "render_balls",
    "simulate_balls",
]
