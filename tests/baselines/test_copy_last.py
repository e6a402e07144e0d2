import torch

from torchrsm import Trainer, load, preset
from torchrsm.baselines import CopyLast


def test_the_first_prediction_is_black():
    predictor = CopyLast()
    prediction = predictor.predict(predictor.initial_state((2, 3, 4, 5)))
    assert torch.equal(prediction.frame, torch.zeros(2, 3, 4, 5))


def test_predicts_the_last_frame_and_forgets_the_others():
    predictor = CopyLast()
    state = predictor.initial_state((2, 1, 4, 4))
    for frame in torch.rand(3, 2, 1, 4, 4):
        state = predictor.observe(frame, predictor.predict(state), state)
        assert torch.equal(predictor.predict(state).frame, frame)


def test_the_command_line_and_python_know_it_by_name():
    assert isinstance(load("copy-last"), CopyLast)


def test_a_run_has_nothing_to_learn_and_leaves_a_model(tmp_path):
    trainer = Trainer(preset("copy-last"), tmp_path / "run")
    assert trainer.progress == 1
    trainer.run()
    assert trainer.step == 0
    assert isinstance(load(tmp_path / "run"), CopyLast)
    Trainer(preset("copy-last"), tmp_path / "run", resume=True).run()
