"""Complete, named experiments: each function returns every setting of one run."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from torchrsm.baselines import (
    AnyBaselineConfig,
    ConstantVelocityConfig,
    ConvLSTMConfig,
    CopyLastConfig,
    DTSBNConfig,
    FramesUNetConfig,
    LSTMConfig,
    PGNConfig,
    PredRNNConfig,
    RTRBMConfig,
    Seq2SeqConvLSTMConfig,
    Seq2SeqConvLSTMMultiDecoderConfig,
    SimVPConfig,
    SRTRBMConfig,
    WindowNetworkConfig,
)
from torchrsm.learning.local import LearningConfig
from torchrsm.learning.rectifying import RectifyingConfig
from torchrsm.learning.windows import SequenceLearningConfig
from torchrsm.model import ModelConfig
from torchrsm.rectifiers.compact import CompactConfig
from torchrsm.rectifiers.local import LocalConfig
from torchrsm.rectifiers.paper import PaperConfig
from torchrsm.rectifiers.unet import UNetConfig
from torchrsm.rsm.head import HeadConfig
from torchrsm.rsm.layer import LayerConfig
from torchrsm.runs.settings import AnyRunConfig, BaselineRunConfig, RunConfig, TrainingConfig
from torchrsm.streams.grammar import named_grammar
from torchrsm.streams.settings import PUBLISHED_BALLS, GrammarConfig, StreamConfig, VariedBallsConfig

_PAPER_LAYER_1 = LayerConfig(groups=64, cells_per_group=8, active_groups=3, kernel_size=5, pool=2, activation="sigmoid")

_PAPER_LAYER_2 = LayerConfig(groups=128, cells_per_group=8, active_groups=5, kernel_size=3)

_PAPER_STEPS = 200_000  # of the stack

_PAPER_RECTIFIER_STEPS = 50_000

_PAPER_STEPS_IN_ALL = _PAPER_STEPS + _PAPER_RECTIFIER_STEPS


def paper() -> RunConfig:
    """Return the published two layers, rectifier and settings.

    docs/science/reproduction.md says what the publication leaves open and what is done here.
    """
    return RunConfig(
        name="paper",
        model=ModelConfig(layers=(_PAPER_LAYER_1, _PAPER_LAYER_2), height=30, width=30, pad=2, rectifier=PaperConfig()),
        learning=LearningConfig(learning_rates=(5e-4,)),
        rectifying=RectifyingConfig(share=_PAPER_RECTIFIER_STEPS / _PAPER_STEPS_IN_ALL),
        training=TrainingConfig(steps=_PAPER_STEPS_IN_ALL, batch_size=256),
    )


def paper_1l() -> RunConfig:
    """Return the published first layer alone."""
    return _first_layer_alone(paper())


def paper_fast() -> RunConfig:
    """Return `paper` with a faster learning rate, a schedule and the recurrent memory normalised at each location."""
    run = paper()
    below, above = (layer.replace(normalisation="location") for layer in run.model.layers)
    below = below.replace(decoder_deviation=0.3)
    return RunConfig(
        name="paper-fast",
        model=run.model.replace(layers=(below, above), rectifier=None),
        learning=LearningConfig(learning_rates=(6e-3, 3e-3), schedule="cosine", epsilon=1e-12),
        training=TrainingConfig(minutes=25, batch_size=256),
    )


def paper_fast_1l() -> RunConfig:
    """Return the first layer of `paper-fast` alone."""
    return _first_layer_alone(paper_fast())


def balls_window() -> RunConfig:
    """Return a small stack and a rectifier that both read the last four frames, which say all in this world."""
    below = LayerConfig(
        groups=100,
        active_groups=8,
        kernel_size=7,
        recurrent_kernel_size=1,
        input_frames=4,
        input_threshold=1 / 256,
        normalisation="location",
        inhibition_decay=None,
        dropout=0.0,
        activation="sigmoid",
        output_bias="channel",
        margin=2,
        decoder_deviation=0.3,
    )
    above = LayerConfig(
        groups=64,
        active_groups=5,
        kernel_size=5,
        decoder_kernel_size=3,
        normalisation="location",
        inhibition_decay=None,
        dropout=0.0,
        output_bias="channel",
        decoder_deviation=0.1,
    )
    return RunConfig(
        name="balls-window",
        model=ModelConfig(layers=(below, above), pad=2, fresh_feedback=True, rectifier=UNetConfig()),
        learning=LearningConfig(learning_rates=(3e-3,), schedule="cosine"),
        rectifying=RectifyingConfig(
            share=0.97,
            stack_share=0.12,
            learning_rate=2e-3,
            matrix_learning_rate=5e-3,
            schedule="cosine",
            loop_share=0.125,
            loop_from=0.85,
            loop_steps=60,
            loop_error=2.0,
            motion_weight=0.008,
        ),
        training=TrainingConfig(minutes=15, batch_size=16),
    )


# The rectifier learns after the stack; then its own frames are fed back, and their motion is held to the world's.
_RECTIFIER_AFTER_THE_STACK: dict[str, Any] = {
    "rectifying.stack_share": None,
    "rectifying.gradient_norm": 0.02,
    "rectifying.loop_share": 0.25,
    "rectifying.loop_from": 0.5,
    "rectifying.motion_weight": 0.016,
}

_WIDE: dict[str, Any] = {"model.layers.0.groups": 512, "model.layers.0.active_groups": 24}


def balls() -> RunConfig:
    """Return the best for two cores: a wide recurrent stack that reads one frame at a time; its weights fit any size.

    The world looks the same from all sides, so the weights are tied. The kernel of layer 1 has an even side: it then
    covers an even frame alike from all sides. The rectifier has no memory and sees no frame. All that it knows it hears
    from the stack: the prediction, and the winners that made it.
    """
    below = {
        "groups": 256,
        "active_groups": 12,
        "kernel_size": 8,
        "recurrent_kernel_size": 5,
        "input_frames": 1,
        "changes": "last",
        "loss": "cross_entropy",
    }
    # Dreams come late, when the rates are low: earlier, the balls get lost in them.
    late = {"share": 0.35, "loop_from": 0.75, "motion_weight": 0.02, "adversarial_weight": 0.0}
    rates = {"learning_rate": 8e-3, "matrix_learning_rate": 1e-2}
    rectifying = {f"rectifying.{name}": value for name, value in (late | rates).items()}
    return balls_window().replace(
        name="balls",
        **{f"model.layers.0.{name}": value for name, value in below.items()},
        **{"model.symmetry": "square", "model.rectifier": UNetConfig(sees_frames=False)},
        **{"learning.betas": (0.9, 0.99), "learning.streams_per_update": 8, "training.minutes": 30},
        **_RECTIFIER_AFTER_THE_STACK | rectifying,
    )


def balls_large() -> RunConfig:
    """Return `balls` with twice the cells and winners in layer 1, for a GPU or for hours of two cores."""
    return balls().replace(name="balls-large", **_WIDE, **{"training.minutes": 300})


def balls_local() -> RunConfig:
    """Return `balls` with a row of local stages for a rectifier: no gradient crosses a layer, a stage or a step."""
    return balls().replace(name="balls-local", **{"model.rectifier": LocalConfig()})


def balls_compact() -> RunConfig:
    """Return a wider stack with a trace for the last frames, then a rectifier that sees its prediction and winners."""
    wide = {"groups": 200, "active_groups": 10, "recurrent_kernel_size": 3, "input_frames": 1, "input_decay": 0.7}
    return balls_window().replace(
        name="balls-compact",
        **{f"model.layers.0.{name}": value for name, value in wide.items()},
        **{"model.rectifier": CompactConfig()},
        **{"rectifying.share": 0.5} | _RECTIFIER_AFTER_THE_STACK,
    )


def balls_wide() -> RunConfig:
    """Return a wide recurrent stack that reads one frame at a time, and a rectifier without any memory.

    All that the rectifier knows of the frames before the last it hears from the stack: its prediction and its winners.
    """
    above = {"model.layers.1.groups": 128, "model.layers.1.active_groups": 8}
    return balls_compact().replace(name="balls-wide", **_WIDE, **above, **{"model.layers.0.input_decay": None})


def balls_any() -> RunConfig:
    """Return `balls` that learns from many worlds: 2 to 6 balls of any size and speed, frames of 24 to 64 pixels.

    A dream is held to the motion of the other streams, which here are of other worlds. So there is no motion loss.
    """
    return balls().replace(name="balls-any", stream=VariedBallsConfig(), **{"rectifying.motion_weight": 0.0})


def paper_rectifier() -> RunConfig:
    """Return `balls` with the published rectifier and its settings."""
    changes = {"model.rectifier": PaperConfig(), "rectifying": RectifyingConfig()}
    return balls().replace(name="paper-rectifier", **changes)


def balls_1l() -> RunConfig:
    """Return the first layer of `balls` alone."""
    return _first_layer_alone(balls())


def balls_window_1l() -> RunConfig:
    """Return the first layer of `balls-window` alone."""
    return _first_layer_alone(balls_window())


def reber() -> RunConfig:
    """Return a layer with a head that learns the embedded Reber grammar, the published sizes.

    Its cells tell histories apart before they have learned anything. So the layer learns slowly, the head fast.
    """
    layer = LayerConfig(
        groups=200,
        cells_per_group=6,
        active_groups=25,
        kernel_size=1,
        stride=1,
        inhibition_decay=0.98,
        dropout=0.0,
        activation="softmax",
        loss="cross_entropy",
        output_bias="channel",
        decoder_deviation=0.1,
    )
    return RunConfig(
        name="reber",
        model=ModelConfig(layers=(layer,), channels=7, height=1, width=1, head=HeadConfig(symbols=7, hidden_units=500)),
        learning=LearningConfig(learning_rates=(1e-5,), schedule="cosine", head_learning_rate=1e-3),
        stream=GrammarConfig(grammar="reber"),
        training=TrainingConfig(minutes=5, batch_size=100),
    )


def digits_3() -> RunConfig:
    """Return a layer with a head that learns one row of handwritten digits, which goes on for ever."""
    return _of_digits("digits-3")


def digits_8x9() -> RunConfig:
    """Return a layer with a head that learns eight sequences of nine digits, which come without any mark."""
    return _of_digits("digits-8x9")


def _of_digits(grammar: str) -> RunConfig:
    """Return a boosted layer of single cells, each of which sees the whole of a digit, the published sizes.

    Beside the next digit its winners must tell the two before the last. Without that they forget what they cannot use
    yet, and learn several times more slowly.
    """
    layer = LayerConfig(
        groups=1000,
        active_groups=120,
        kernel_size=28,
        stride=28,
        inhibition_decay=None,
        boost=1.2,
        dropout=0.0,
        activation="sigmoid",
        recall=2,
        output_bias="channel",
        recurrent_deviation=2.0,
        decoder_deviation=0.1,
    )
    head = HeadConfig(symbols=len(named_grammar(grammar).symbols), hidden_units=1200)
    return RunConfig(
        name=grammar,
        model=ModelConfig(layers=(layer,), height=28, width=28, head=head),
        learning=LearningConfig(learning_rates=(2e-3,), schedule="cosine", head_learning_rate=1e-3),
        stream=GrammarConfig(grammar=grammar, pictures="handwritten", restarts=False),
        training=TrainingConfig(minutes=15, batch_size=32),
    )


def words_boosted() -> RunConfig:
    """Return a boosted layer of single cells for the words of a text, the published sizes."""
    layer = LayerConfig(
        groups=1500,
        active_groups=80,
        kernel_size=1,
        stride=1,
        recurrent_decay=0.85,
        normalisation="location",
        inhibition_decay=None,
        boost=1.2,
        boost_decay=0.99,
        dropout=0.0,
        activation="sigmoid",
        output_bias="channel",
        decoder_deviation=0.1,
    )
    return reber().replace(
        name="words-boosted",
        **{"model.layers": (layer,), "model.head": HeadConfig(symbols=7), "training.batch_size": 100},
    )


def words_rsm() -> RunConfig:
    """Return a layer with groups and inhibition for the words of a text, the published sizes."""
    layer = LayerConfig(
        groups=600,
        cells_per_group=8,
        active_groups=20,
        kernel_size=1,
        stride=1,
        recurrent_decay=0.85,
        inhibition_decay=0.8,
        dropout=0.0,
        activation="sigmoid",
        output_bias="channel",
        decoder_deviation=0.1,
    )
    return reber().replace(
        name="words-rsm", **{"model.layers": (layer,), "model.head": HeadConfig(symbols=7, hidden_units=1200)}
    )


def tiny() -> RunConfig:
    """Return two small layers on small frames, with every mechanism of the published ones; for tests."""
    below = LayerConfig(groups=12, cells_per_group=3, active_groups=2, kernel_size=5, pool=2, activation="sigmoid")
    above = LayerConfig(groups=10, cells_per_group=2, active_groups=2, kernel_size=3)
    return RunConfig(
        name="tiny",
        model=ModelConfig(layers=(below, above), height=12, width=12, pad=2),
        learning=LearningConfig(learning_rates=(3e-3,), schedule="cosine"),
        stream={"resolution": 12, "sequence_length": 20},  # type: ignore[arg-type]
        training=TrainingConfig(steps=200, batch_size=4, threads=1, log_steps=10),
    )


def lowest_layers(run: RunConfig, count: int) -> RunConfig:
    """Return a run with the lowest layers of its stack alone, 1 or more."""
    layers, rates = run.model.layers[:count], run.learning.learning_rates
    changes: dict[str, Any] = {
        "model.layers": (*layers[:-1], layers[-1].replace(pool=1)),  # nothing stands above it
        "learning.learning_rates": rates if len(rates) == 1 else rates[:count],
    }
    if count == 1:
        changes |= {"model.feedback": True, "model.fresh_feedback": False}
    return run.replace(**changes)


def _first_layer_alone(run: RunConfig) -> RunConfig:
    return lowest_layers(run, 1).replace(name=f"{run.name}-1l")


_TUNED: dict[str, Any] = {"learning_rates": (3e-3,), "schedule": "cosine", "gradient_norm": 1.0}


def copy_last() -> BaselineRunConfig:
    """Return "frame t-1", which has nothing to learn."""
    return _baseline("copy-last", CopyLastConfig())


def rtrbm() -> BaselineRunConfig:
    """Return the recurrent temporal RBM, taught by contrastive divergence with one step."""
    return _baseline("rtrbm", RTRBMConfig(), window=8, learning_rates=(5e-3,), schedule="cosine")


def srtrbm() -> BaselineRunConfig:
    """Return the structured recurrent temporal RBM, which learns which parts of a frame belong together."""
    return _baseline("srtrbm", SRTRBMConfig(), window=8, learning_rates=(1e-2,), schedule="cosine")


def dtsbn() -> BaselineRunConfig:
    """Return the deep temporal sigmoid belief network; faster rates than published."""
    return _baseline("dtsbn", DTSBNConfig(), window=16, learning_rates=(1e-2,), schedule="cosine")


def constant_velocity() -> BaselineRunConfig:
    """Return balls that fly on in straight lines, which has nothing to learn."""
    return _baseline("constant-velocity", ConstantVelocityConfig())


def lstm() -> BaselineRunConfig:
    """Return the published LSTM over whole frames, which did not learn to move balls there either."""
    return _baseline("lstm", LSTMConfig(), checkpoint_seconds=300.0)  # a checkpoint of it has 730 MB


def convlstm() -> BaselineRunConfig:
    """Return the published ConvLSTM, channels 10-10-10-1."""
    return _baseline("convlstm", ConvLSTMConfig())


def seq2seq_convlstm() -> BaselineRunConfig:
    """Return the published encoder and decoder of convolutional LSTMs."""
    return _baseline("seq2seq-convlstm", Seq2SeqConvLSTMConfig(), window=16)


def seq2seq_convlstm_multi_decoder() -> BaselineRunConfig:
    """Return the same with a second decoder, which reconstructs the frames that were seen."""
    return _baseline("seq2seq-convlstm-multi-decoder", Seq2SeqConvLSTMMultiDecoderConfig(), window=16)


def pgn() -> BaselineRunConfig:
    """Return the predictive generative network, smaller than published, taught by the squared error."""
    return _baseline("pgn", PGNConfig(), batch_size=8, window=10, learning_rates=(1e-3,), gradient_norm=1.0)


def pgn_adversarial() -> BaselineRunConfig:
    """Return `pgn` with its adversarial loss."""
    return pgn().replace(name="pgn-adversarial", model=PGNConfig(adversarial_weight=2e-4))


def convlstm_wide() -> BaselineRunConfig:
    """Return a ConvLSTM with today's habits, tuned on validation sequences."""
    model = ConvLSTMConfig(
        hidden_channels=(64, 64),
        kernel_sizes=(3, 3),
        patch=3,
        readout_kernel_size=3,
        residual=True,
        forget_bias=1.0,
    )
    return _baseline("convlstm-wide", model, batch_size=4, window=10, **{**_TUNED, "learning_rates": (6e-3,)})


def predrnn() -> BaselineRunConfig:
    """Return a PredRNN for two cores, tuned on validation sequences."""
    return _baseline("predrnn", PredRNNConfig(), batch_size=4, window=8, **{**_TUNED, "learning_rates": (6e-3,)})


def simvp() -> BaselineRunConfig:
    """Return a small SimVP, convolutions alone, tuned on validation sequences."""
    learning: dict[str, Any] = {"learning_rates": (8e-3,), "schedule": "cosine", "warmup_share": 0.1}
    return _baseline("simvp", SimVPConfig(context=4), batch_size=8, window=4, log_steps=100, **learning)


def simvp_10() -> BaselineRunConfig:
    """Return `simvp` with the last ten frames."""
    return simvp().replace(name="simvp-10", **{"model.context": 10, "learning.window": 10})


def unet() -> BaselineRunConfig:
    """Return the rectifier of `balls-window` on the last four frames alone, taught alike.

    It has no memory for a gradient to go through, so an update takes one frame of each of many streams.
    """
    learning: dict[str, Any] = {"learning_rates": (2e-3,), "matrix_learning_rate": 5e-3, "schedule": "cosine"}
    return _baseline("unet", FramesUNetConfig(), window=1, log_steps=100, **learning)


def symbol_lstm() -> BaselineRunConfig:
    """Return an LSTM that names the next symbol, taught through windows."""
    model = LSTMConfig(hidden_units=(256,), readout="linear", symbols=7, channels=7, height=1, width=1)
    learning = {**_TUNED, "learning_rates": (3e-3,)}
    return _baseline("symbol-lstm", model, stream=GrammarConfig(), batch_size=32, window=20, **learning)


def window_network() -> BaselineRunConfig:
    """Return a network that names the next symbol from the last eight."""
    model = WindowNetworkConfig(context=8, symbols=7, channels=7, height=1, width=1)
    learning = {**_TUNED, "learning_rates": (1e-3,)}
    return _baseline("window-network", model, stream=GrammarConfig(), batch_size=32, window=20, **learning)


def _baseline(
    name: str,
    model: AnyBaselineConfig,
    *,
    stream: StreamConfig = PUBLISHED_BALLS,
    batch_size: int = 16,
    log_steps: int = 20,
    checkpoint_seconds: float = 30.0,
    **learning: Any,
) -> BaselineRunConfig:
    return BaselineRunConfig(
        name=name,
        model=model,
        learning=SequenceLearningConfig(**learning),
        stream=stream,
        training=TrainingConfig(
            minutes=15, batch_size=batch_size, log_steps=log_steps, checkpoint_seconds=checkpoint_seconds
        ),
    )


PRESETS: dict[str, Callable[[], AnyRunConfig]] = {
    preset.__name__.replace("_", "-"): preset
    for preset in (
        balls,
        balls_window,
        balls_large,
        balls_local,
        balls_1l,
        balls_window_1l,
        balls_compact,
        balls_wide,
        balls_any,
        paper_rectifier,
        paper,
        paper_1l,
        paper_fast,
        paper_fast_1l,
        tiny,
        copy_last,
        constant_velocity,
        lstm,
        rtrbm,
        srtrbm,
        dtsbn,
        pgn,
        pgn_adversarial,
        seq2seq_convlstm_multi_decoder,
        seq2seq_convlstm,
        convlstm,
        convlstm_wide,
        predrnn,
        simvp,
        simvp_10,
        unet,
        reber,
        digits_3,
        digits_8x9,
        words_boosted,
        words_rsm,
        symbol_lstm,
        window_network,
    )
}
"""All presets by name."""


def preset(name: str) -> AnyRunConfig:
    """Return the preset of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {unknown_preset(name)}")
    return PRESETS[name]()


def unknown_preset(name: str) -> str:
    """Return, for an error message, a name that is no preset and the nearest one that is."""
    nearest = get_close_matches(name, PRESETS, 1)
    return f"{name!r}, did you mean {nearest[0]!r}?" if nearest else repr(name)
