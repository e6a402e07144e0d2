"""A state is made where its model is: nothing that a model remembers is made without saying where.

The device ``meta`` has shapes and no values. What is made on the CPU by mistake meets it and fails; so does what asks
for a value, which on an accelerator would wait for all its work.

What hands frames to a model, or needs values, runs on a stand-in for a device instead (`foreign_device`), which refuses
to mix devices as torch does.
"""

import json

import device_under_test
import numpy as np
import pytest
import torch
from foreign_device import FOREIGN, OnForeignDevice, foreign_device
from warm_kernels import rectified_run

import torchrsm
from torchrsm import LearningConfig, RectifyingConfig, Trainer, VideoPredictor, Watcher, preset
from torchrsm.baselines import BASELINES, make_baseline
from torchrsm.baselines.sequence_model import Window
from torchrsm.cli import main
from torchrsm.devices import available_devices, choose_device, precise_type
from torchrsm.learning.contract import require_finite_tensors
from torchrsm.learning.online import OnlineLearner
from torchrsm.learning.windows import SequenceLearner, SequenceLearningConfig
from torchrsm.rectifiers import RECTIFIERS
from torchrsm.runs.bench.measuring import prediction_speeds
from torchrsm.runs.trainer import CHECKPOINT_FILE
from torchrsm.scoring.sequences import imagine, predict_sequences
from torchrsm.state import flatten, to_device
from torchrsm.storage.tensors import load_tensors
from torchrsm.streams import BouncingBallsOnDevice
from torchrsm.systems import load

META = torch.device("meta")

LOOKS_AT_VALUES = {"constant-velocity"}  # it finds balls, which needs pixels

COUNTS = {"seq2seq-convlstm-multi-decoder"}  # reads a number of its own once in an update

LEARNS = sorted(set(BASELINES) - LOOKS_AT_VALUES - COUNTS - {"copy-last"})


def devices(*states):
    return {tensor.device for state in states for tensor in flatten("state", state).values()}


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_remembers_where_it_is(name):
    config = BASELINES[name][0]()
    model = make_baseline(config).to(META)
    shape = (2, config.channels, config.height, config.width)
    state = model.initial_state(shape)
    assert devices(state) == {META}
    assert model.like.device == META
    if name in LOOKS_AT_VALUES:
        return
    prediction = model.predict(state)
    after = model.observe(torch.zeros(shape, device=META), prediction, state)
    assert devices(prediction.frame, after) == {META}


@pytest.mark.parametrize("name", LEARNS)
def test_a_baseline_learns_where_it_is(name):
    config = BASELINES[name][0]()
    learner = SequenceLearner(make_baseline(config), SequenceLearningConfig(window=12), (2, *shape_of(config)), META)
    frames = torch.zeros(12, 2, *shape_of(config), device=META)
    lesson = learner.model.learn(Window(frames, torch.zeros(12, 2, dtype=torch.bool, device=META)), learner.state)
    assert devices(lesson.state, lesson.losses, lesson.frames, lesson.scored) == {META}
    assert devices(learner.state) == {META}


def shape_of(config):
    return config.channels, config.height, config.width


@pytest.mark.parametrize("name", ["paper", "balls", "tiny", "paper-fast"])
def test_rsm_remembers_where_it_is(name):
    config = preset(name).model
    model = VideoPredictor(config).to(META)
    shape = (2, config.channels, config.height or 30, config.width or 30)
    state = model.initial_state(shape)
    assert devices(state) == {META}
    prediction = model.predict(state)
    frame = torch.zeros(shape, device=META)
    after = model.observe(frame, prediction, state)
    assert devices(prediction.frame, prediction.raw, prediction.seen, after, model.last_frame(after)) == {META}
    assert devices(model.losses(prediction, frame)) == {META}
    assert [s.shape for s in flatten("s", after).values()] == [s.shape for s in flatten("s", state).values()]


@pytest.mark.parametrize("kind", RECTIFIERS)
def test_all_that_learns_is_where_the_run_says(kind):
    run = preset("balls")
    settings = run.model.model_dump() | {"rectifier": {"kind": kind}}
    model = type(run.model).model_validate(settings)
    learns = RECTIFIERS[kind][0].learns
    rectifying = RectifyingConfig(matrix_learning_rate=1e-3) if learns else None
    learner = OnlineLearner(model, LearningConfig(), rectifying, True, (2, 1, 30, 30), META)
    tensors = [tensor for module in learner.modules.values() for tensor in (*module.parameters(), *module.buffers())]
    assert devices(learner.state, tuple(tensors)) == {META}
    assert ("discriminator" in learner.modules) is learns
    learner.warm_up()


def test_a_seed_gives_the_same_weights_on_any_device():
    """They are drawn on the CPU and then moved."""
    run = preset("tiny")
    weights = []
    for device in ("cpu", "meta"):
        torch.manual_seed(3)
        OnlineLearner(run.model, run.learning, run.rectifying, True, (2, 1, 12, 12), torch.device(device))
        weights.append(torch.rand(1))
    assert torch.equal(*weights)  # as many numbers were drawn


def test_a_state_moves_with_its_model():
    model = load("balls")
    state = model.initial_state((1, 1, 30, 30))
    assert devices(to_device(state, META)) == {META}


# --- Names ------------------------------------------------------------------------------------------------------------


def test_the_cpu_is_there():
    assert available_devices()[0] == "cpu"
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("cards", "apple", "name", "chosen"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "cpu"),  # float64 is missing there, so it must be asked for
        (0, True, "mps", "mps"),
        (2, False, "auto", "cuda:0"),
        (2, False, "cuda", "cuda:0"),
        (2, False, "cuda:1", "cuda:1"),
        (2, False, "cpu", "cpu"),
    ],
)
def test_a_name_chooses_a_device(monkeypatch, cards, apple, name, chosen):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)
    assert choose_device(name) == torch.device(chosen)


@pytest.mark.parametrize(("name", "there"), [("cuda", "cpu"), ("mps", "cpu"), ("cuda:2", "cpu, cuda:0, cuda:1")])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch, name, there):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there.count("cuda"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"^device must be auto or one that is there, {there}; got '{name}'$"):
        choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "meta", "CPU", "", "cuda:0\n"])
def test_a_name_of_no_device_is_refused_with_the_forms_that_there_are(name):
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda, cuda:N or mps; got "):
        load("copy-last", device=name)


def test_float64_is_used_where_there_is_one():
    assert precise_type(torch.device("cuda")) == precise_type(torch.device("cpu")) == torch.float64
    assert precise_type(torch.device("mps")) == torch.float32


# --- On the stand-in --------------------------------------------------------------------------------------------------


@pytest.fixture
def foreign():
    """A CUDA device."""
    if device_under_test.is_foreign():
        yield FOREIGN
    else:
        with foreign_device() as device:
            yield device


FRAMES = torchrsm.bouncing_ball_frames("validation", sequences=3)[:, :8]


def test_the_stand_in_refuses_what_torch_refuses(foreign):
    there, here = torch.arange(3.0, device=foreign), torch.ones(3)
    assert there.device == foreign
    assert (there * 2 + torch.tensor(1.0)).tolist() == [1, 3, 5]  # a scalar may come from anywhere
    assert torch.equal(there.cpu(), torch.arange(3.0))
    assert there[torch.tensor([2])].device == foreign
    for mixes in (lambda: there + here, lambda: here @ there, lambda: torch.where(here > 0, there, 0)):
        with pytest.raises(RuntimeError, match="two devices, cuda:0 and cpu"):
            mixes()
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        np.asarray(there)
    module = torch.nn.Linear(3, 2).to(foreign)
    assert isinstance(module.weight, OnForeignDevice)
    module(there).sum().backward()
    assert module.weight.grad.device == foreign
    here.copy_(there)
    assert here.device.type == "cpu"
    assert here.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["balls", "copy-last", "constant-velocity"])
def test_scores_and_dreams_are_those_of_the_cpu(foreign, name):
    """Frames may lie anywhere: they go to the model, and what it makes of them comes back."""
    on_cpu, there = load(name, engine="reference"), load(name, device="cuda")
    expected, got = (predict_sequences(model, FRAMES) for model in (on_cpu, there))
    assert got.frames.device.type == "cpu"
    torch.testing.assert_close(got.frames, expected.frames, rtol=0, atol=1e-4)
    assert (got.raw is None) == (expected.raw is None)
    dream = imagine(there, FRAMES, 5, batch_size=2)
    torch.testing.assert_close(dream, imagine(on_cpu, FRAMES, 5, batch_size=2), rtol=0, atol=1e-3)
    assert devices(predict_sequences(there, FRAMES.to(foreign)).frames) == {foreign}
    scores = [
        torchrsm.Evaluator(FRAMES).evaluate(model).frame_squared_error.all_predictable for model in (on_cpu, there)
    ]
    assert scores[1].mean == pytest.approx(scores[0].mean, rel=1e-3)
    assert torchrsm.evaluate_rollouts(there, FRAMES, prime=5, steps=4).steps == 4


def test_speeds_are_measured_there(foreign):
    assert prediction_speeds({"copy-last": load("copy-last", device="cuda")})["copy-last"] > 0


def test_a_model_moves_back_and_forth(foreign):
    model = VideoPredictor.from_pretrained("balls", device=foreign)
    assert devices(model.initial_state((1, 1, 30, 30))) == {foreign}
    model.to("cpu")
    assert devices(model.initial_state((1, 1, 30, 30))) == {torch.device("cpu")}


def small(name, device, steps):
    run = preset(name)
    changes = {"steps": steps, "minutes": None, "batch_size": 3, "threads": 1, "log_steps": 1, "device": device}
    if name not in ("copy-last", "constant-velocity"):
        run = run.replace(learning=run.learning.replace(window=12))
    return run.replace(training=run.training.replace(**changes))


@pytest.mark.parametrize("name", ["copy-last", "constant-velocity", "rtrbm", "srtrbm", "dtsbn", "seq2seq-convlstm"])
def test_a_baseline_learns_there_and_goes_on_here_and_back(foreign, tmp_path, name):
    folder = tmp_path / "run"
    for steps, device in enumerate(("cuda", "cpu", "cuda:0"), 1):
        trainer = Trainer(small(name, device, steps), folder, resume=steps > 1)
        model = trainer.run()
        assert devices(trainer.learner.state) == {choose_device(device)}
    assert devices(predict_sequences(model, FRAMES).frames) == {torch.device("cpu")}
    assert load(folder).like.device.type == "cpu"


def test_a_run_goes_on_bit_by_bit_there_and_moves_between_devices(foreign, tmp_path):
    run = rectified_run(steps=24, log_steps=6, device="cuda", threads=1)
    trainer = Trainer(run, tmp_path / "whole")
    assert isinstance(trainer.stream, BouncingBallsOnDevice)
    trainer.run()
    stopped = Trainer(run, tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        stopped.run(lambda record: stopped.stop() if record.step == 18 else None)
    resumed = Trainer(run, tmp_path / "stopped", resume=True)
    assert resumed.step == 18
    kept = [entry for optimiser in resumed.learner.optimisers for entry in optimiser.state.values()]
    assert {key for entry in kept for key in entry} == {"step", "exp_avg", "exp_avg_sq", "momentum"}
    assert devices(*(tensor for entry in kept for tensor in entry.values())) == {foreign}
    resumed.run()
    whole, again = (load_tensors(tmp_path / name / CHECKPOINT_FILE)[0] for name in ("whole", "stopped"))
    assert [name for name in whole if not torch.equal(whole[name], again[name])] == []
    for steps, device in ((30, "cpu"), (36, "cuda")):
        changes = {"training.steps": steps, "training.device": device}
        moved = Trainer(run.replace(**changes), tmp_path / "whole", resume=True)
        assert devices(moved.run().initial_state((1, 1, 12, 12))) == {choose_device(device)}


def test_numbers_of_two_devices_are_checked_together(foreign):
    """Some optimisers keep their count on the CPU."""
    tensors = {"weight": torch.ones(2, device=foreign), "step": torch.ones(()), "average": torch.ones(3)}
    require_finite_tensors(tensors)
    tensors["step"] = torch.tensor(torch.nan)
    with pytest.raises(ArithmeticError, match="step is not finite"):
        require_finite_tensors(tensors)


def test_watching_takes_frames_from_anywhere(foreign):
    frames = np.random.default_rng(0).random((6, 1, 16, 16), dtype=np.float32)
    watcher = Watcher((1, 16, 16), device="cuda")
    assert devices(tuple(watcher.model.parameters())) == {foreign}
    errors = [watcher.see(frame).error for frame in frames]
    errors.append(watcher.see(torch.from_numpy(frames[0]).to(foreign)).error)
    assert errors[0] is None
    assert all(error > 0 for error in errors[1:])


def test_commands_compute_there(foreign, tmp_path, capsys):
    film, scores = tmp_path / "film.mp4", tmp_path / "scores.json"
    on = ["--device", "cuda"]
    dream = ["dream", "balls", "--prime", "4", "--steps", "4", "--out"]
    evaluate = ["evaluate", "copy-last", "--sequences", "2", "--rollout-steps", "3"]
    commands = [
        [*dream, film],
        [*dream, tmp_path / "dream.npz", "--json", tmp_path / "physics.json"],
        [*dream, tmp_path / "dream.png"],
        [*evaluate, "--json", scores, "--strip", tmp_path / "strip.png"],
        ["predict", "copy-last", film, "--frames", "5", "--out", tmp_path / "prediction.mp4"],
        ["watch", film, "--frames", "3"],
        ["train", "tiny", "--steps", "3", "--out", tmp_path / "run"],
    ]
    for command in commands:
        assert main([*map(str, command), *on]) == 0, capsys.readouterr().err
    assert json.loads(scores.read_text())["sequences"] == 2
    assert torchrsm.load(tmp_path / "run").training is False


@pytest.mark.skipif(device_under_test.device_name() != "cpu", reason="says what is there on a machine with a CPU alone")
@pytest.mark.parametrize(
    "command",
    [
        ["train", "tiny", "--steps", "1", "--out", "run"],
        ["evaluate", "copy-last"],
        ["dream", "copy-last", "--out", "dream.png"],
        ["predict", "copy-last", "film.mp4", "--out", "prediction.mp4"],
        ["bench", "balls", "--minutes", "1", "--out", "bench"],
        ["serve"],
    ],
    ids=lambda command: command[0],
)
def test_a_command_says_in_one_line_what_device_it_cannot_have(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    (tmp_path / "film.mp4").write_bytes(b"-")
    for name, says in (
        ("gpu", "device must be auto, cpu, cuda, cuda:N or mps; got 'gpu'"),
        ("cuda", "device must be auto or one that is there, cpu; got 'cuda'"),
        ("mps", "device must be auto or one that is there, cpu; got 'mps'"),
    ):
        assert main([*command, "--device", name]) == 2
        assert capsys.readouterr().err.endswith(f"{says}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_the_page_computes_there(foreign):
    pytest.importorskip("fastapi")
    from torchrsm.web import messages
    from torchrsm.web.library import Library
    from torchrsm.web.session import Session

    session = Session(Library([], "cuda"), seed=1)
    source = messages.BallsSource()
    session.apply(messages.Configure(type="configure", id=1, source=source, models=("balls", "constant-velocity")))
    shown = [session.advance() for _ in range(3)]
    session.apply(messages.Dream(type="dream", id=2))
    session.advance()
    session.apply(messages.Place(type="place", id=3, ball=0, x=5, y=5, vx=0, vy=0))
    shown.append(session.advance())
    session.apply(messages.Train(type="train", id=4, minutes=1))
    shown += [session.advance() for _ in range(2)]
    assert all(len(message.encode()) > 900 for message in shown)
    assert session.state().panes[0].model == "learning"
    assert devices(session._training.learner.state) == {foreign}
