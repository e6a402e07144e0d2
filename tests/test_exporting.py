import numpy as np
import onnxruntime
import pytest
import torch

import torchrsm
from torchrsm import OneStep, Trainer, VideoConfig, bouncing_ball_frames, cli, export_step, fit, frame_shape, preset
from torchrsm.exporting import save_step

SHAPE = (1, 1, 30, 30)


@pytest.fixture(scope="module")
def model():
    return torchrsm.load("balls", engine="reference")


@pytest.fixture(scope="module")
def frames():
    return bouncing_ball_frames("validation", 1)[:, :6]


@torch.no_grad()
def test_one_step_is_what_predict_and_observe_do(model, frames):
    step = OneStep(model, SHAPE)
    frame, *carried = step.initial()
    state = model.initial_state(SHAPE)
    assert len(carried) == len(step.state_names) == len(set(step.state_names))
    for true in frames.unbind(1):
        prediction = model.predict(state)
        assert torch.equal(frame, prediction.frame)
        state = model.observe(true, prediction, state)
        frame, *carried = step(true, *carried)
    dream, _ = model.rollout(state, 3)
    for expected in dream.unbind(1):
        assert torch.equal(frame, expected)
        frame, *carried = step(frame, *carried)


@torch.no_grad()
def test_an_exported_step_predicts_and_dreams_like_the_model(model, frames):
    program = export_step(model, SHAPE).module()
    step = OneStep(model, SHAPE)
    ours = theirs = step.initial()
    for true in [*frames.unbind(1), *[None] * 10]:
        ours = step(ours[0] if true is None else true, *ours[1:])
        theirs = program(theirs[0] if true is None else true, *theirs[1:])
        torch.testing.assert_close(theirs[0], ours[0], rtol=0, atol=1e-5)


def test_export_chooses_an_engine_that_can_be_exported(frames):
    model = torchrsm.load("balls")  # its own engine is made of compiled functions
    program = export_step(model, SHAPE).module()
    first = OneStep(model, SHAPE).initial()
    with torch.no_grad():
        torch.testing.assert_close(program(frames[:, 0], *first[1:])[0], model(frames[:, :1])[:, 0], rtol=0, atol=1e-5)


def test_refuses_a_model_that_is_being_trained_and_frames_that_it_cannot_read():
    model = torchrsm.VideoPredictor(torchrsm.preset("tiny").model)
    with pytest.raises(ValueError, match="evaluation mode to be exported"):
        OneStep(model.train(), (1, 1, 12, 12))
    with pytest.raises(ValueError, match="12 x 12; got 30 x 30"):
        OneStep(model.eval(), SHAPE)
    with pytest.raises(ValueError, match="shape must be the four numbers"):
        OneStep(model, (1, 12, 12))


def film_model(folder):
    """A model that has learned a little from a film in colour."""
    film = np.random.default_rng(0).integers(0, 255, (40, 18, 22, 3), dtype=np.uint8)
    np.save(folder / "film.npy", film)
    config = VideoConfig(path=str(folder / "film.npy"), channels=3)
    run = fit(preset("balls-window"), frame_shape(config), config)
    run = run.replace(**{"training.minutes": None, "training.steps": 8})
    return Trainer(run, folder / "run").run(), (2, 3, 18, 22), np.repeat(film[None, :12].transpose(0, 1, 4, 2, 3), 2, 0)


@pytest.mark.no_cover
@pytest.mark.parametrize(("of", "ending"), [("balls", "onnx"), ("film", "onnx"), ("film", "pt2")])
def test_a_saved_program_is_the_model_at_each_of_150_dreamt_steps(tmp_path, of, ending):
    """Program and model do each step from one state: what rounding makes of another state only grows."""
    if of == "film":
        model, shape, frames = film_model(tmp_path)
        frames = torch.from_numpy(frames / 255).float()
    else:
        model, shape, frames = torchrsm.load("balls"), SHAPE, bouncing_ball_frames("validation", 1)[:, :12]
    first = save_step(model, shape, tmp_path / f"step.{ending}")
    step = OneStep(torchrsm.load(tmp_path / "run" if of == "film" else "balls"), shape)
    with np.load(first) as arrays:
        names, state = list(arrays), [arrays[name] for name in arrays]
    assert names == ["frame", *step.state_names]
    if ending == "onnx":
        program = onnxruntime.InferenceSession(tmp_path / "step.onnx", providers=["CPUExecutionProvider"])
        assert [value.name for value in program.get_inputs()] == names
        assert [value.name for value in program.get_outputs()] == [f"next_{name}" for name in names]
    else:
        program = torch.export.load(tmp_path / "step.pt2").module()
    worst, dreamt = 0.0, []
    with torch.no_grad():
        for true in [*frames.unbind(1), *[None] * 150]:
            given = [state[0] if true is None else true.numpy(), *state[1:]]
            ours = [value.numpy() for value in step(*map(torch.from_numpy, given))]
            if ending == "onnx":
                state = program.run(None, dict(zip(names, given, strict=True)))
            else:
                state = [value.numpy() for value in program(*map(torch.from_numpy, given))]
            worst = max(worst, float(np.abs(state[0] - ours[0]).max()))
            dreamt.append(state[0])
    assert worst < 1e-5
    assert np.std(dreamt[-1]) > 0.01


@pytest.mark.parametrize(
    ("name", "message"), [("step.txt", "file must end in .pt2 or .onnx; got"), ("a/b/step.pt2", "No such file")]
)
def test_a_program_that_cannot_be_saved_is_refused(model, tmp_path, name, message):
    with pytest.raises((ValueError, OSError), match=message):
        save_step(model, SHAPE, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_program_that_reads_what_the_model_learned_from(tmp_path, capsys):
    assert cli.main(["export", "balls", "--out", str(tmp_path / "balls.pt2"), "--batch", "2"]) == 0
    said = capsys.readouterr()
    assert (said.err, "reads frames of 2 x 1 x 30 x 30 and the state" in said.out) == ("", True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["balls.first.npz", "balls.pt2"]
    for arguments, message in (
        (["export", "copy-last", "--out", str(tmp_path / "c.pt2")], "model must be RSM to be exported; 'copy-last' is"),
        (["export", "balls", "--out", "balls.tf"], "out must end in .onnx or .pt2; got 'balls.tf'"),
    ):
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err
