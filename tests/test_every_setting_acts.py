"""Each setting of every system has a change that changes what is learned, or stands where it is refused.

What was learned is a hash of all weights, of what the streams have seen, and of the next prediction, after a few
updates on the same frames with the same random numbers.
"""

import hashlib
from functools import cache

import pytest
import torch

from torchrsm.baselines import BASELINES, WITHOUT_WEIGHTS
from torchrsm.baselines.constant_velocity import ConstantVelocityConfig
from torchrsm.rectifiers import RECTIFIERS
from torchrsm.rsm import kernels
from torchrsm.runs.settings import BaselineRunConfig, RunConfig
from torchrsm.state import flatten
from torchrsm.streams import BouncingBalls, StreamBatch
from torchrsm.streams.settings import (
    BouncingBallsConfig,
    GrammarConfig,
    MovingMNISTConfig,
    VariedBallsConfig,
    make_stream,
)

SIZE = (1, 8, 8)
BASELINE_NAMED_SO = "baseline "  # stands before the name of a baseline that is that of a rectifier, too
OF_SYMBOLS = "symbols"  # RSM with a head
KINDS = (
    *RECTIFIERS,
    *(f"{BASELINE_NAMED_SO}{kind}" if kind in RECTIFIERS else kind for kind in BASELINES),
    OF_SYMBOLS,
)
STREAMS, UPDATES = 4, 12


@cache
def small(kind):
    """A small run of a system: RSM with a rectifier of this kind, or with a head, or a baseline."""
    if kind == OF_SYMBOLS:
        layer = {"groups": 6, "active_groups": 2, "kernel_size": 1, "stride": 1, "output_bias": "channel"}
        size = {"channels": 7, "height": 1, "width": 1}
        model = {"layers": [layer], "head": {"symbols": 7, "hidden_units": 4}, **size}
        training = {"steps": UPDATES, "batch_size": STREAMS}
        return RunConfig(name="small", model=model, learning={}, stream=GrammarConfig(), training=training)
    if kind in KINDS and kind not in RECTIFIERS:
        kind = kind.removeprefix(BASELINE_NAMED_SO)
        size = {"height": SIZE[1], "width": SIZE[2]}
        learning = {} if kind in WITHOUT_WEIGHTS else {"window": 6}
        model = {"kind": kind, **size, **SMALL_BASELINES[kind]}
        training = {"steps": 2, "batch_size": STREAMS}
        return BaselineRunConfig(name="small", model=model, learning=learning, training=training)
    layer = {"groups": 6, "active_groups": 2, "kernel_size": 3, "output_bias": "channel", "decoder_deviation": 0.3}
    rectifying = None if kind == "sharpening" else {"share": 0.7, "stack_share": 0.6, "learning_rate": 1e-2}
    return RunConfig(
        name="small",
        model={"layers": [layer, layer], "pad": 1, "rectifier": {"kind": kind, **SMALL_RECTIFIERS[kind]}},
        learning={},
        rectifying=rectifying,
        training={"steps": UPDATES, "batch_size": STREAMS},
    )


SMALL_RECTIFIERS = {
    "compact": {"width": 4, "blocks": 1},
    "unet": {"features": 4, "width": 4, "blocks": 1},
    "local": {"stages": 2, "width": 4, "hidden_layers": 1},
    "paper": {},
    "sharpening": {},
}
SMALL_BASELINES = {
    "copy-last": {},
    "constant-velocity": {"height": 16, "width": 16},
    "lstm": {"hidden_units": (6,)},
    "rtrbm": {"hidden_units": 6},
    "srtrbm": {"hidden_units": 8, "tile": 4},
    "dtsbn": {"lower_units": 6, "upper_units": 5, "baseline_units": 4},
    "pgn": {"filters": (4,), "hidden_units": 8},
    "seq2seq-convlstm": {"hidden_channels": (2, 1), "kernel_sizes": (3, 3), "horizon": 2, "decode_every": 2},
    "seq2seq-convlstm-multi-decoder": {
        "hidden_channels": (2, 1),
        "kernel_sizes": (3, 3),
        "horizon": 2,
        "decode_every": 2,
        "curriculum_updates": 2,
    },
    "convlstm": {"hidden_channels": (2, 1), "kernel_sizes": (3, 3)},
    "predrnn": {"hidden_channels": 4, "layers": 1},
    "simvp": {"context": 2, "spatial_channels": 4, "temporal_channels": 4, "temporal_blocks": 2},
    "unet": {"features": 2, "inner_features": 4, "blocks": 1},
    "window-network": {"context": 2, "hidden_units": (6,)},
}


@cache
def learned(run):
    """A hash of all that some updates left behind."""
    frames = torch.rand(UPDATES, STREAMS, *shape_of(run), generator=torch.Generator().manual_seed(1))
    if isinstance(run.model, ConstantVelocityConfig):  # which sees nothing but balls
        balls = BouncingBalls(STREAMS, resolution=run.model.height, seed=1)
        frames = torch.stack([next(balls).frames for _ in range(UPDATES)])
    count = len(run.stream.symbols())
    named = torch.randint(count, (UPDATES, STREAMS), generator=torch.Generator().manual_seed(2)) if count else None
    batches = [
        StreamBatch(
            f,
            torch.tensor([t == 0] * STREAMS),
            torch.zeros(STREAMS).long(),
            symbols=None if named is None else named[t],
        )
        for t, f in enumerate(frames)
    ]
    before = kernels.threads(), torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(run.training.seed)
        learner = run.make_learner((STREAMS, *shape_of(run)), torch.device("cpu"), True)
        count = learner.batches_per_update
        for start in range(0, UPDATES - count + 1, count):
            progress = start / UPDATES
            learner.begin(learner.phase(progress), 1)
            if learner.optimisers:
                learner.teach(batches[start : start + count], progress)
        kernels.set_threads(*before)
        learner.model.eval()
        with torch.no_grad():
            state = learner.model.initial_state((STREAMS, *shape_of(run)))
            for frame in frames[:3]:
                prediction = learner.model.predict(state)
                state = learner.model.observe(frame, prediction, state)
            prediction = learner.model.predict(state)
            seen = {"prediction": prediction.frame}
            if getattr(prediction, "symbols", None) is not None:
                seen["symbols"] = prediction.symbols
    tensors = seen | flatten("state", learner.state)
    for name, module in learner.modules.items():
        tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)} ".encode() + tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def shape_of(run):
    return (run.model.channels, *((run.model.height, run.model.width) if run.model.height else SIZE[1:]))


# --- The table: kind of the small run, what is changed in it beforehand, path, new value -----------------------------

COSINE = {"learning.schedule": "cosine"}
DREAMS = {
    "rectifying.loop_share": 0.5,
    "rectifying.loop_from": 0.0,
    "rectifying.loop_error": 1e3,
    "rectifying.loop_steps": 3,
    "rectifying.share": 0.9,
}


def draws(kind):
    """What lets a rectifier draw; both parts go together."""
    rectifier = {"kind": kind, **SMALL_RECTIFIERS[kind], "noise_channels": 2, "noise_side": 2}
    return {
        "model.rectifier": rectifier,
        "rectifying": {"share": 0.7, "stack_share": 0.6, "loss": "energy_score", "adversarial_weight": 0.0},
    }


BOOST = {"model.layers.0.inhibition_decay": None, "model.layers.0.boost": 5.0}

SOFTMAX = {
    "groups": 6,
    "active_groups": 2,
    "kernel_size": 1,
    "stride": 1,
    "output_bias": "channel",
    "activation": "softmax",
    "loss": "cross_entropy",
}
RSM = [
    ("compact", {}, "model.layers.0.groups", 7),
    ("compact", {}, "model.layers.0.cells_per_group", 2),
    ("compact", {}, "model.layers.0.active_groups", 3),
    ("compact", {}, "model.layers.0.kernel_size", 5),
    ("compact", {}, "model.layers.0.stride", 1),
    ("compact", {"model.height": 8, "model.width": 8}, "model.layers.0.decoder", "fully_connected"),
    ("compact", {}, "model.layers.0.decoder_kernel_size", 5),
    ("compact", {}, "model.layers.0.recurrent", False),
    ("compact", {}, "model.feedback", False),
    ("compact", {}, "model.layers.0.recurrent_kernel_size", 3),
    ("compact", {}, "model.layers.0.recurrent_decay", 0.5),
    ("compact", {"model.layers.0.recurrent_decay": 0.5}, "model.layers.0.learns_decay", True),
    ("compact", {}, "model.layers.0.forgetting", 0.5),
    ("compact", {}, "model.layers.0.recall", 2),
    ("compact", {}, "model.layers.0.input_frames", 2),
    ("compact", {}, "model.layers.0.input_decay", 0.5),
    ("compact", {}, "model.layers.0.input_threshold", 0.5),
    ("compact", {}, "model.layers.0.normalisation", "location"),
    ("compact", {}, "model.layers.0.inhibition_decay", 0.5),
    ("compact", {"model.layers.0.inhibition_decay": None}, "model.layers.0.boost", 5.0),
    ("compact", BOOST, "model.layers.0.boost_decay", 0.5),
    ("compact", {}, "model.layers.0.dropout", 0.0),
    ("compact", {}, "model.layers.0.pool", 2),
    ("compact", {}, "model.layers.0.activation", "sigmoid"),
    ("compact", {}, "model.layers.0.changes", "last"),
    ("compact", {"model.layers.0.activation": "sigmoid"}, "model.layers.0.loss", "cross_entropy"),
    ("compact", {"model.height": 8, "model.width": 8}, "model.layers.0.output_bias", "element"),
    ("compact", {}, "model.layers.0.margin", 1),
    ("compact", {}, "model.layers.1.margin", 1),
    ("compact", {}, "model.layers.0.recurrent_deviation", 0.1),
    ("compact", {}, "model.layers.0.decoder_deviation", 0.1),
    ("compact", {}, "model.layers", [{"groups": 6, "active_groups": 2, "output_bias": "channel"}]),
    ("compact", {}, "model.channels", 3),
    ("compact", {}, "model.pad", 2),
    ("compact", {}, "model.pad_value", 0.25),
    ("compact", {}, "model.fresh_feedback", True),
    ("compact", {}, "model.symmetry", "mirror"),
    ("compact", {}, "model.rectifier", {"kind": "paper"}),
    ("compact", {}, "model.rectifier.width", 6),
    ("compact", {}, "model.rectifier.blocks", 2),
    ("compact", {}, "model.rectifier.sees_cells", False),
    ("unet", {}, "model.rectifier.features", 6),
    ("unet", {}, "model.rectifier.width", 6),
    ("unet", {}, "model.rectifier.blocks", 2),
    ("unet", {}, "model.rectifier.changes", "last"),
    ("unet", {}, "model.rectifier.sees_cells", False),
    ("unet", {}, "model.rectifier.sees_frames", False),
    ("local", {}, "model.rectifier.stages", 3),
    ("local", {}, "model.rectifier.width", 6),
    ("local", {}, "model.rectifier.hidden_layers", 2),
    ("local", {}, "model.rectifier.sees_cells", False),
    ("sharpening", {}, "model.rectifier.gain", 3.0),
    ("sharpening", {}, "model.rectifier.level", 0.4),
    ("compact", {}, "learning.schedule", "cosine"),
    ("compact", COSINE, "learning.warmup_share", 0.5),
    ("compact", COSINE, "learning.final_share", 0.5),
    ("compact", {}, "learning.learning_rates", (1e-3,)),
    ("compact", {}, "learning.betas", (0.5, 0.9)),
    ("compact", {}, "learning.epsilon", 1e-3),
    ("compact", {}, "learning.streams_per_update", 2),
    ("compact", {}, "rectifying.schedule", "cosine"),
    ("compact", {"rectifying.schedule": "cosine"}, "rectifying.warmup_share", 0.5),
    ("compact", {"rectifying.schedule": "cosine"}, "rectifying.final_share", 0.5),
    ("compact", {}, "rectifying.share", 0.9),
    ("compact", {}, "rectifying.stack_share", 0.9),
    ("compact", {}, "rectifying.learning_rate", 1e-3),
    ("compact", {}, "rectifying.matrix_learning_rate", 1e-3),
    ("paper", {}, "rectifying.matrix_learning_rate", 1e-3),
    ("unet", {}, "rectifying.matrix_learning_rate", 1e-3),
    ("compact", {}, "rectifying.adversarial_weight", 0.1),
    ("compact", {}, "rectifying.discriminator_learning_rate", 0.1),
    ("compact", {}, "rectifying.real_label", 0.5),
    ("compact", {}, "rectifying.noise_deviation", 0.5),
    ("compact", {}, "rectifying.gradient_norm", 1e-3),
    ("compact", DREAMS, "rectifying.loop_share", 0.25),
    ("compact", DREAMS, "rectifying.loop_from", 0.5),
    ("compact", DREAMS, "rectifying.loop_error", 1e-3),
    ("compact", DREAMS, "rectifying.loop_steps", 2),
    ("compact", DREAMS, "rectifying.motion_weight", 1.0),
    ("compact", DREAMS | {"rectifying.motion_weight": 1.0}, "rectifying.motion_blur", 0.5),
    *(
        (kind, draws(kind), path, value)
        for kind in ("unet", "local")
        for path, value in (
            ("model.rectifier.noise_channels", 4),
            ("model.rectifier.noise_side", 1),
            ("rectifying.energy_window", 4),
        )
    ),
    ("compact", {}, "training.seed", 1),
    (OF_SYMBOLS, {}, "model.head", None),
    (OF_SYMBOLS, {}, "model.head.hidden_units", 5),
    (OF_SYMBOLS, {}, "model.head.dropout", 0.5),
    (OF_SYMBOLS, {}, "learning.head_learning_rate", 1e-2),
    (OF_SYMBOLS, {"model.layers.0.loss": "squared"}, "model.layers.0", SOFTMAX),
]

LEARNING = [
    ("convlstm", {}, "learning.window", 4),
    ("convlstm", {}, "learning.optimiser", "sgd"),
    ("convlstm", {}, "learning.learning_rates", (2e-3,)),
    ("convlstm", {}, "learning.momentum", 0.5),
    ("convlstm", {"learning.optimiser": "rmsprop"}, "learning.momentum", 0.5),
    ("convlstm", {"learning.optimiser": "sgd"}, "learning.momentum", 0.5),
    ("convlstm", {}, "learning.square_decay", 0.5),
    ("convlstm", {"learning.optimiser": "rmsprop"}, "learning.square_decay", 0.5),
    ("convlstm", {}, "learning.matrix_learning_rate", 1e-2),
    ("convlstm", {}, "learning.epsilon", 1e-3),
    ("convlstm", {"learning.optimiser": "rmsprop"}, "learning.epsilon", 1e-3),
    ("convlstm", {}, "learning.weight_decay", 0.1),
    ("convlstm", {"learning.optimiser": "sgd"}, "learning.gradient_norm", 1e-3),
    ("convlstm", {}, "learning.schedule", "cosine"),
    ("convlstm", COSINE, "learning.warmup_share", 0.9),
    ("convlstm", COSINE, "learning.final_share", 0.5),
]

INCEPTION = {"model.translator": "inception", "model.groups": 2, "model.kernel_sizes": (3, 5)}
BOLTZMANN = [
    ("hidden_units", 4),
    ("gibbs_steps", 2),
    ("prediction_steps", 2),
    ("direct", True),
    ("initial_deviation", 0.1),
]
STACK = [("hidden_channels", (3, 1)), ("kernel_sizes", (5, 3)), ("forget_bias", 1.0)]
FLEXIBLE = ("lstm", "rtrbm", "pgn", "convlstm", "copy-last", "dtsbn")
SYMBOLS = {"model.channels": 7, "model.height": 1, "model.width": 1, "stream": GrammarConfig()}
BASELINE = [
    *(("constant-velocity", {}, f"model.{name}", value) for name, value in (("balls", 1), ("radius", 2.0))),
    ("constant-velocity", {}, "model", {"kind": "constant-velocity", "height": 20, "width": 20}),
    *((kind, {}, "model.channels", 3) for kind in FLEXIBLE if kind != "convlstm"),
    *((kind, {}, "model.height", 12) for kind in FLEXIBLE),
    *((kind, {}, "model.width", 12) for kind in FLEXIBLE),
    ("lstm", {}, "model.hidden_units", (4, 3)),
    ("lstm", {}, "model.readout", "linear"),
    *((kind, SYMBOLS, "model.symbols", 7) for kind in ("lstm", "window-network")),
    ("window-network", {}, "model.context", 3),
    ("window-network", {}, "model.hidden_units", (4,)),
    *((kind, {}, f"model.{name}", value) for kind in ("rtrbm", "srtrbm") for name, value in BOLTZMANN),
    ("srtrbm", {}, "model.tile", 8),
    ("srtrbm", {}, "model.initial_gate", 1.0),
    ("srtrbm", {}, "model.sparsity", 10.0),
    ("dtsbn", {}, "model.lower_units", 4),
    ("dtsbn", {}, "model.upper_units", 4),
    ("dtsbn", {}, "model.order", 1),
    ("dtsbn", {}, "model.baseline_units", 3),
    ("dtsbn", {}, "model.initial_deviation", 0.1),
    ("dtsbn", {}, "model.signal", "future"),
    ("dtsbn", {}, "model.signal_momentum", 0.3),
    ("pgn", {}, "model.filters", (4, 4)),
    ("pgn", {}, "model.kernel_size", 5),
    ("pgn", {}, "model.hidden_units", 6),
    ("pgn", {}, "model.adversarial_weight", 0.1),
    ("pgn", {"model.adversarial_weight": 0.1}, "model.discriminator_units", 5),
    *((kind, {}, f"model.{n}", v) for kind in ("convlstm", "seq2seq-convlstm") for n, v in STACK),
    *(("seq2seq-convlstm-multi-decoder", {}, f"model.{name}", value) for name, value in STACK),
    ("convlstm", {"model.readout_kernel_size": 3}, "model.patch", 2),
    ("convlstm", {}, "model.readout_kernel_size", 3),
    ("convlstm", {"model.readout_kernel_size": 3}, "model.residual", True),
    ("seq2seq-convlstm", {}, "model.horizon", 3),
    ("seq2seq-convlstm-multi-decoder", {"model.curriculum_updates": None}, "model.horizon", 3),
    *((kind, {}, "model.decode_every", 3) for kind in ("seq2seq-convlstm", "seq2seq-convlstm-multi-decoder")),
    ("seq2seq-convlstm", {}, "model.curriculum_updates", 1),
    ("seq2seq-convlstm-multi-decoder", {}, "model.curriculum_updates", None),
    ("seq2seq-convlstm-multi-decoder", {}, "model.reconstruction_weight", 0.1),
    ("predrnn", {}, "model.hidden_channels", 6),
    ("predrnn", {}, "model.layers", 2),
    ("predrnn", {}, "model.kernel_size", 5),
    ("predrnn", {}, "model.patch", 1),
    ("predrnn", {}, "model.forget_bias", 2.0),
    ("predrnn", {}, "model.residual", False),
    ("predrnn", {}, "model.decoupling_weight", 10.0),
    ("simvp", {}, "model.context", 3),
    ("simvp", {}, "model.horizon", 2),
    ("simvp", {}, "model.spatial_channels", 6),
    ("simvp", {}, "model.spatial_blocks", 1),
    ("simvp", {"model.temporal_channels": 8}, "model.translator", "inception"),
    ("simvp", {}, "model.temporal_channels", 6),
    ("simvp", {}, "model.temporal_blocks", 1),
    ("simvp", INCEPTION, "model.kernel_sizes", (3,)),
    ("simvp", INCEPTION, "model.groups", 1),
    ("simvp", {}, "model.residual", False),
    ("baseline unet", {}, "model.context", 3),
    ("baseline unet", {}, "model.pad", 0),
    ("baseline unet", {}, "model.features", 4),
    ("baseline unet", {}, "model.inner_features", 6),
    ("baseline unet", {}, "model.blocks", 2),
    ("baseline unet", {"model.features": 4}, "model.symmetry", "mirror"),
]

TABLE = [*RSM, *LEARNING, *BASELINE]


@pytest.mark.parametrize(("kind", "beforehand", "path", "value"), TABLE, ids=lambda entry: str(entry)[:40])
def test_a_setting_changes_what_is_learned(kind, beforehand, path, value):
    before = small(kind).replace(**beforehand)
    after = before.replace(**{path: value})
    assert after != before
    assert learned(after) != learned(before)


def test_the_loss_of_a_rectifier_that_draws_changes_what_is_learned():
    """It cannot be changed alone."""
    assert learned(small("unet").replace(**draws("unet"))) != learned(small("unet").replace(**OFF))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_settings_learn_the_same(kind):
    """So that a difference in the table means something."""
    assert learned(small(kind)) == learned.__wrapped__(small(kind))


# --- Where a setting cannot act, it is refused ------------------------------------------------------------------------

ALONE = {"groups": 4, "active_groups": 2, "output_bias": "channel"}
DEAF = {"model.layers.0.recurrent": False, "model.feedback": False}
OFF = {"rectifying.adversarial_weight": 0.0}
REFUSED = [
    ("compact", {}, "model.layers.0.boost_decay", 0.5, "boost is 0"),
    (
        "compact",
        {"model.height": 8, "model.width": 8, "model.layers.0.decoder": "fully_connected"},
        "model.layers.0.decoder_kernel_size",
        3,
        "the decoder is fully_connected",
    ),
    ("compact", {}, "model.layers.1.pool", 2, "no layer stands above"),
    ("compact", {}, "learning.head_learning_rate", 0.1, "the model has no head"),
    ("compact", {"model.layers": [ALONE]}, "model.fresh_feedback", True, "there is one layer"),
    ("compact", {"model.layers": [ALONE]}, "model.feedback", False, "there is one layer"),
    ("compact", {"model.feedback": False}, "model.fresh_feedback", True, "there is no feedback"),
    *(
        ("compact", {"model.layers.1.recurrent": False}, f"model.layers.1.{name}", value, "the layer is not recurrent")
        for name, value in (("recurrent_kernel_size", 3), ("recurrent_decay", 0.5), ("normalisation", "none"))
    ),
    *(
        ("compact", DEAF, f"model.layers.0.{name}", 0.25, "the layer hears neither its own cells")
        for name in ("dropout", "recurrent_deviation")
    ),
    ("sharpening", {"model.pad": 0}, "model.pad_value", 0.25, "pad is 0"),
    ("sharpening", {"model.rectifier.gain": 1.0}, "model.rectifier.level", 0.25, "gain is 1"),
    *(
        (kind, {}, f"{section}.{name}", 0.5, "the schedule is constant")
        for kind, section in (("compact", "learning"), ("compact", "rectifying"), ("convlstm", "learning"))
        for name in ("warmup_share", "final_share")
    ),
    ("compact", OFF, "rectifying.real_label", 0.5, "adversarial_weight is 0"),
    ("compact", OFF, "rectifying.noise_deviation", 0.5, "adversarial_weight is 0"),
    ("compact", OFF, "rectifying.discriminator_learning_rate", 0.5, "adversarial_weight is 0"),
    ("compact", {}, "rectifying.loop_from", 0.25, "loop_share is 0"),
    ("compact", {}, "rectifying.loop_error", 0.25, "loop_share is 0"),
    ("compact", {}, "rectifying.loop_steps", 5, "loop_share is 0"),
    ("compact", {}, "rectifying.motion_weight", 0.25, "loop_share is 0"),
    ("compact", {}, "rectifying.motion_blur", 0.25, "loop_share is 0"),
    ("compact", DREAMS, "rectifying.motion_blur", 0.25, "motion_weight is 0"),
    ("compact", {}, "rectifying.loop_share", 0.1, "only a share above 0.5 / training.batch_size = 0.125"),
    ("compact", {"rectifying": {"share": 0.0}}, "rectifying.learning_rate", 0.25, "rectifying.share is 0"),
    ("convlstm", {"learning.optimiser": "sgd"}, "learning.square_decay", 0.5, "the optimiser is sgd"),
    ("convlstm", {"learning.optimiser": "sgd"}, "learning.epsilon", 0.5, "the optimiser is sgd"),
    ("copy-last", {}, "learning.window", 5, "copy-last has nothing to learn"),
    ("constant-velocity", {}, "learning.optimiser", "sgd", "constant-velocity has nothing to learn"),
    ("pgn", {}, "model.discriminator_units", 5, "adversarial_weight is 0"),
    ("simvp", {}, "model.groups", 2, "the translator is plain"),
    ("simvp", {}, "model.kernel_sizes", (3,), "the translator is plain"),
    ("seq2seq-convlstm", {"model.horizon": 1}, "model.curriculum_updates", 5, "horizon is 1"),
]


@pytest.mark.parametrize(("kind", "beforehand", "path", "value", "why"), REFUSED, ids=lambda entry: str(entry)[:40])
def test_a_setting_that_cannot_act_is_refused(kind, beforehand, path, value, why):
    before = small(kind).replace(**beforehand)
    with pytest.raises(ValueError, match="must be .*no effect there; got") as caught:
        before.replace(**{path: value})
    assert f"where {why}" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("learning.epsilon", 1e-3),
        ("rectifying.share", 0.7),
        ("rectifying.stack_share", 0.9),
        ("learning.schedule", "cosine"),
    ],
)
def test_how_a_given_stack_would_learn_is_refused(path, value):
    given = small("compact").replace(stack_from="runs/a", rectifying={})
    with pytest.raises(ValueError, match=r"where stack_from is given and the stack does not learn"):
        given.replace(**{path: value})


# --- Worlds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "path", "value"),
    [
        (BouncingBallsConfig(resolution=12, sequence_length=4), "balls", 2),
        (BouncingBallsConfig(resolution=12, sequence_length=4), "radius", 0.8),
        (BouncingBallsConfig(resolution=12, sequence_length=4), "resolution", 13),
        (BouncingBallsConfig(resolution=12, sequence_length=4), "sequence_length", 3),
        (BouncingBallsConfig(resolution=12, sequence_length=4), "speed", 2.0),
        (VariedBallsConfig(resolutions=(12, 16), sequence_length=4), "balls", (1, 1)),
        (VariedBallsConfig(resolutions=(12, 16), sequence_length=4), "radius", (0.7, 0.8)),
        (VariedBallsConfig(resolutions=(12, 16), sequence_length=4), "speed", (0.5, 0.5)),
        (VariedBallsConfig(resolutions=(12, 16), sequence_length=4), "resolutions", (16, 12)),
        (VariedBallsConfig(resolutions=(12, 16), sequence_length=4), "sequence_length", 3),
        (MovingMNISTConfig(resolution=28, sequence_length=4), "digits", 1),
        (MovingMNISTConfig(resolution=28, sequence_length=4), "resolution", 29),
        (MovingMNISTConfig(resolution=28, sequence_length=4), "sequence_length", 3),
        (MovingMNISTConfig(resolution=28, sequence_length=20), "deterministic", False),
        (GrammarConfig(), "grammar", "digits-3"),
        (GrammarConfig(grammar="digits-8x9"), "restarts", False),
        (GrammarConfig(grammar="digits-3"), "pictures", "fixed"),
        (GrammarConfig(grammar="digits-3", pictures="handwritten"), "shift", 2),
    ],
)
def test_a_setting_changes_the_world(config, path, value):
    def batches(config):
        stream = make_stream(config, 2, 0)
        return [
            (tuple(b.frames.shape), b.frames.tolist(), b.starts.tolist())
            for b, _ in zip(stream, range(12), strict=False)
        ]

    assert batches(config) == batches(config)
    assert batches(config.replace(**{path: value})) != batches(config)


# --- The table is whole -----------------------------------------------------------------------------------------------

NAMES = ("kind", "name")
ELSEWHERE = {
    # Tested by name in tests/runs/test_trainer.py: the loop around an update, and where the stack comes from.
    *(
        ("TrainingConfig", name)
        for name in ("steps", "minutes", "clock", "threads", "device", "precision", "log_steps", "checkpoint_seconds")
    ),
    ("TrainingConfig", "batch_size"),
    # It goes together with another, see the test of it above.
    ("RectifyingConfig", "loss"),
    ("RunConfig", "stack_from"),
    # Sections, whose own settings are in the table.
    *((run, name) for run in ("RunConfig", "BaselineRunConfig") for name in ("learning", "training", "stream")),
    ("RunConfig", "model"),
    ("RunConfig", "rectifying"),
    # As many as the stream shows: tests/cli/test_symbols.py.
    ("HeadConfig", "symbols"),
    # The frames' size, where the weights fit any: tests/test_model.py.
    ("ModelConfig", "height"),
    ("ModelConfig", "width"),
}


def holder_of(run, path):
    for part in path.split(".")[:-1]:
        run = run[int(part)] if isinstance(run, tuple) else getattr(run, part)
    return type(run)


def test_every_setting_is_in_the_table():
    """A field that classes share is in it if one of them is there with it."""
    table = {(holder_of(small(kind).replace(**done), path), path.split(".")[-1]) for kind, done, path, _ in TABLE}
    in_table = {
        (cls, name) for holder, name in table for cls in holder.__mro__ if name in getattr(cls, "model_fields", ())
    }
    missing = set()
    for kind in KINDS:
        for section in sections(small(kind)):
            for name in set(type(section).model_fields) - {*NAMES}:
                if not any((cls, name) in in_table for cls in type(section).__mro__):
                    missing.add((type(section).__name__, name))
    assert sorted(missing - ELSEWHERE) == []
    assert missing >= ELSEWHERE


def sections(run):
    yield from (run, run.model, run.learning, run.training)
    if isinstance(run, RunConfig):
        yield from run.model.layers
        yield from (part for part in (run.model.rectifier, run.model.head) if part is not None)
        if run.rectifying is not None:
            yield run.rectifying
