"""Streams of frames to learn from: what a stream must do, bouncing balls, digits, films, arrays, a camera."""

from torchrsm.streams.array import ArrayStream, FrameSource, load_frames, open_frames
from torchrsm.streams.bouncing_balls import (
    BallSequences,
    BouncingBalls,
    bouncing_ball_sequences,
    render_balls,
    simulate_balls,
)
from torchrsm.streams.bouncing_balls_on_device import BouncingBallsOnDevice
from torchrsm.streams.chance_balls import (
    KickedBalls,
    TwoWayBalls,
    crossings,
    kicked_ball_sequences,
    two_way_ball_sequences,
)
from torchrsm.streams.clips import ClipStream
from torchrsm.streams.disturbed import DisturbanceConfig, Disturbed, Shown, disturbed_sequences, expected_noisy
from torchrsm.streams.film_clock import Gap
from torchrsm.streams.films import DamagedFilmWarning, NumberedFrame, VideoReader
from torchrsm.streams.grammar import GRAMMARS, Grammar, Step, grammar_of, named_grammar, read_grammar
from torchrsm.streams.image_folder import ImageFolder
from torchrsm.streams.layouts import describe_frames
from torchrsm.streams.live_film import LiveFilm, is_live
from torchrsm.streams.moving_mnist import MovingMNIST, moving_mnist_sequences
from torchrsm.streams.pictures import AnimationReader, ImageFolderReader
from torchrsm.streams.stream import Stream, StreamBatch, check_stream
from torchrsm.streams.symbols import SymbolStream
from torchrsm.streams.transforms import Pad
from torchrsm.streams.turns import Turns
from torchrsm.streams.varied_balls import VariedBalls
from torchrsm.streams.video_file import VideoFile, load_clips, numbered_frames, open_clips
from torchrsm.streams.webcam import Webcam

__all__ = [
    "GRAMMARS",
    "AnimationReader",
    "ArrayStream",
    "BallSequences",
    "BouncingBalls",
    "BouncingBallsOnDevice",
    "ClipStream",
    "DamagedFilmWarning",
    "DisturbanceConfig",
    "Disturbed",
    "FrameSource",
    "Gap",
    "Grammar",
    "ImageFolder",
    "ImageFolderReader",
    "KickedBalls",
    "LiveFilm",
    "MovingMNIST",
    "NumberedFrame",
    "Pad",
    "Shown",
    "Step",
    "Stream",
    "StreamBatch",
    "SymbolStream",
    "Turns",
    "TwoWayBalls",
    "VariedBalls",
    "VideoFile",
    "VideoReader",
    "Webcam",
    "bouncing_ball_sequences",
    "check_stream",
    "crossings",
    "describe_frames",
    "disturbed_sequences",
    "expected_noisy",
    "grammar_of",
    "is_live",
    "kicked_ball_sequences",
    "load_clips",
    "load_frames",
    "moving_mnist_sequences",
    "named_grammar",
    "numbered_frames",
    "open_clips",
    "open_frames",
    "read_grammar",
    "render_balls",
    "simulate_balls",
    "two_way_ball_sequences",
]
