import hashlib
import json
import math
import struct
import time
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from torchrsm.baselines import CopyLast
from torchrsm.model import ModelConfig, VideoPredictor
from torchrsm.rectifiers.compact import CompactConfig
from torchrsm.rsm.layer import LayerConfig
from torchrsm.scoring.evaluation import Evaluator, NextFrameScores
from torchrsm.scoring.metrics import FRAME_SCORES, FrameScore
from torchrsm.scoring.rollouts import RolloutScores, evaluate_rollouts, simulator_tracked_error
from torchrsm.scoring.sequences import imagine, predict_sequences
from torchrsm.streams import splits
from torchrsm.streams.bouncing_balls import bouncing_ball_sequences
from torchrsm.streams.splits import bouncing_ball_frames, frames_sha256


class Predicted(NamedTuple):
    frame: torch.Tensor


class Black:
    """Predicts black, and counts the frames."""

    def initial_state(self, shape):
        return (torch.zeros(shape), torch.ones(shape[0]))

    def predict(self, state):
        return Predicted(state[0])

    def observe(self, frame, prediction, state):
        return (state[0], state[1] + 1)


class RunningMean:
    """Predicts the mean of all the frames seen: depends on the whole past."""

    def initial_state(self, shape):
        return (torch.zeros(shape), torch.zeros(shape[0], 1, 1, 1))

    def predict(self, state):
        return Predicted(state[0] / state[1].clamp(min=1))

    def observe(self, frame, prediction, state):
        return (state[0] + frame, state[1] + 1)


class WrongAt(Black):
    """Predicts ``wrong(frame)`` at one frame."""

    def __init__(self, index, wrong):
        self.index, self.wrong = index, wrong

    def predict(self, state):
        return Predicted(self.wrong(state[0]) if int(state[1][0]) == self.index else state[0])


def random_frames(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def measured(scores):
    return scores.model_dump(exclude={"batch_size", "frames_per_second"})


def hand_made():
    """Black frames but for one pixel; a black prediction of frame t of sequence s costs (t + s) / 100."""
    frames = torch.zeros(3, 12, 1, 11, 11)
    for s in range(3):
        for t in range(1, 13):
            frames[s, t - 1, 0, 4, 5] = math.sqrt((t + s) / 100)
    return frames


def test_windows_of_a_hand_made_case():
    scores = Evaluator(hand_made()).evaluate(Black())
    windows = scores.frame_squared_error
    # frames 2..12, 3..12 and 11..12: means of t are 7, 7.5 and 11.5; those of s are 0, 1, 2
    assert windows.all_predictable == pytest.approx((0.08, 0.01), rel=1e-6)
    assert windows.after_2 == pytest.approx((0.085, 0.01), rel=1e-6)
    assert windows.after_10 == pytest.approx((0.125, 0.01), rel=1e-6)
    assert scores.by_frame[0] is None
    assert scores.by_frame[1:] == pytest.approx([(t + 1) / 100 for t in range(2, 13)], rel=1e-6)
    assert scores.sequences == 3
    assert scores.model == "Black"


def test_the_error_of_frame_1_counts_nowhere():
    frames = hand_made()
    expected = Evaluator(frames).evaluate(Black())
    frames[:, 0] = 1
    scores = Evaluator(frames).evaluate(Black())
    assert scores.frame_squared_error == expected.frame_squared_error
    assert scores.by_frame == expected.by_frame
    assert scores.peak_signal_noise_ratio == expected.peak_signal_noise_ratio


@pytest.mark.parametrize(("length", "after_2", "after_10"), [(2, False, False), (3, True, False), (11, True, True)])
def test_windows_beyond_the_end_are_absent(length, after_2, after_10):
    scores = Evaluator(hand_made()[:, :length]).evaluate(Black())
    assert (scores.frame_squared_error.after_2 is not None) is after_2
    assert (scores.frame_squared_error.after_10 is not None) is after_10
    assert len(scores.by_frame) == length
    assert json.loads(scores.to_json())["frame_squared_error"]["after_10"] is None or after_10
    for name in ("all_predictable", "after_2", "after_10"):
        assert name in scores.table()


def test_every_error_agrees_with_a_loop():
    frames = random_frames(3, 13, 2, 11, 12)
    scores = Evaluator(frames, batch_size=2).evaluate(RunningMean())
    errors = np.zeros((3, 12))
    decibels = np.zeros((3, 12))
    values = frames.double().numpy()
    for s in range(3):
        for t in range(1, 13):
            mean = sum(values[s, i] for i in range(t)) / t
            errors[s, t - 1] = ((mean - values[s, t]) ** 2).sum()
            decibels[s, t - 1] = 10 * math.log10(2 * 11 * 12 / errors[s, t - 1])
    for window, first in (("all_predictable", 2), ("after_2", 3), ("after_10", 11)):
        by_sequence = errors[:, first - 2 :].mean(axis=1)
        expected = (by_sequence.mean(), math.sqrt(((by_sequence - by_sequence.mean()) ** 2).sum() / 2))
        assert getattr(scores.frame_squared_error, window) == pytest.approx(expected, rel=1e-5)
    assert scores.by_frame[1:] == pytest.approx(errors.mean(axis=0), rel=1e-5)
    by_sequence = decibels.mean(axis=1)
    assert scores.peak_signal_noise_ratio == pytest.approx((by_sequence.mean(), by_sequence.std(ddof=1)), rel=1e-5)


def test_structural_similarity_is_that_of_scikit_image():
    from skimage.metrics import structural_similarity

    frames = random_frames(2, 4, 1, 12, 12)
    scores = Evaluator(frames).evaluate(CopyLast())
    expected = [
        np.mean(
            [
                structural_similarity(
                    frames[s, t, 0].double().numpy(),
                    frames[s, t - 1, 0].double().numpy(),
                    data_range=1,
                    gaussian_weights=True,
                    use_sample_covariance=False,
                )
                for t in (1, 2, 3)
            ]
        )
        for s in (0, 1)
    ]
    assert scores.structural_similarity == pytest.approx((np.mean(expected), np.std(expected, ddof=1)), abs=1e-12)


@pytest.mark.parametrize("changed", [2, 5, 12])
def test_a_frame_changes_nothing_before_it(changed):
    frames = random_frames(4, 12, 1, 11, 11)
    before = Evaluator(frames).evaluate(RunningMean()).by_frame
    other = frames.clone()
    other[:, changed - 1] = 1 - other[:, changed - 1]
    after = Evaluator(other).evaluate(RunningMean()).by_frame
    assert after[: changed - 1] == before[: changed - 1]
    assert all(a != b for a, b in zip(after[changed - 1 :], before[changed - 1 :], strict=True))
    predicted = [predict_sequences(RunningMean(), f).frames[:, :changed] for f in (frames, other)]
    assert torch.equal(*predicted)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_the_batch_size_changes_no_bit(batch_size):
    frames = random_frames(7, 12, 1, 13, 11)
    expected = Evaluator(frames, batch_size=7).evaluate(RunningMean())
    scores = Evaluator(frames, batch_size=batch_size).evaluate(RunningMean())
    assert measured(scores) == measured(expected)
    assert scores.batch_size == min(batch_size, 7)


def test_the_order_of_sequences_permutes_and_evaluating_again_repeats():
    frames = random_frames(5, 6, 1, 11, 11)
    evaluator = Evaluator(frames, batch_size=2)
    first = evaluator.evaluate(RunningMean())
    assert measured(evaluator.evaluate(RunningMean())) == measured(first)
    flipped = Evaluator(frames.flip(0), batch_size=2).evaluate(RunningMean())
    assert flipped.by_frame[1:] == pytest.approx(first.by_frame[1:], rel=1e-12)
    assert flipped.frames_sha256 != first.frames_sha256


def test_predictors_that_write_into_what_they_are_given_harm_nobody():
    class Vandal(CopyLast):
        def observe(self, frame, prediction, state):
            seen = frame.clone()
            frame.fill_(0.5)  # the caller's sequences
            prediction.frame.fill_(0.5)  # the prediction that is still to be scored
            return super().observe(seen, prediction, state)

    frames = random_frames(3, 5, 1, 11, 11)
    kept = frames.clone()
    evaluator = Evaluator(frames)
    assert measured(evaluator.evaluate(Vandal(), "x")) == measured(evaluator.evaluate(CopyLast(), "x"))
    assert torch.equal(frames, kept)


def test_perfect_frames_have_finite_scores():
    frames = torch.full((2, 4, 1, 11, 11), 0.25)
    frames[1, 3] = 0.75
    scores = Evaluator(frames).evaluate(CopyLast())
    # sequence 1: three perfect frames; sequence 2: two, and one with a mean squared error of 1/4
    low = (2 * 100 + 10 * math.log10(4)) / 3
    assert scores.peak_signal_noise_ratio == pytest.approx(((100 + low) / 2, (100 - low) / math.sqrt(2)))
    assert scores.frame_squared_error.all_predictable.mean == pytest.approx(121 / 4 / 3 / 2)
    assert scores.structural_similarity.mean < 1


def test_one_sequence_has_no_spread():
    scores = Evaluator(random_frames(1, 3, 1, 11, 11)).evaluate(CopyLast())
    assert scores.frame_squared_error.all_predictable.sd is None
    assert json.loads(scores.to_json())["structural_similarity"]["sd"] is None
    assert "±" not in scores.table().split("\n", 4)[4]


def test_frames_too_small_for_similarity_are_scored_without_it():
    frames = random_frames(2, 3, 1, 10, 11)
    with pytest.raises(ValueError, match=r"at least 11x11 pixels .*; got 10x11"):
        Evaluator(frames)
    scores = Evaluator(frames, similarity=False).evaluate(CopyLast())
    assert scores.structural_similarity is None
    assert scores.frame_squared_error.all_predictable.mean > 0


def test_float64_and_strided_frames_score_the_same():
    frames = random_frames(2, 4, 1, 11, 12)
    expected = measured(Evaluator(frames).evaluate(CopyLast()))
    assert measured(Evaluator(frames.double()).evaluate(CopyLast())) == expected
    strided = frames.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    assert measured(Evaluator(strided).evaluate(CopyLast())) == expected


class Module(CopyLast):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
        self.seen = set()

    def predict(self, state):
        self.seen.add((torch.is_inference_mode_enabled(), *(part.training for part in self.modules())))
        return super().predict(state)


def test_modules_are_evaluated_in_evaluation_mode_and_put_back():
    module = Module()
    module.inner[0].eval()  # a frozen part of a module in training
    before = [part.training for part in module.modules()]
    assert before == [True, True, False, True]
    Evaluator(random_frames(2, 3, 1, 11, 11)).evaluate(module)
    assert module.seen == {(True, False, False, False, False)}
    assert [part.training for part in module.modules()] == before


def test_modules_are_put_back_after_an_error():
    module = Module()
    module.observe = lambda frame, prediction, state: 1 / 0
    with pytest.raises(ZeroDivisionError):
        Evaluator(random_frames(2, 3, 1, 11, 11)).evaluate(module)
    assert all(part.training for part in module.modules())
    assert not torch.is_inference_mode_enabled()


def test_frames_per_second_counts_the_time_of_the_predictor():
    class Slow(CopyLast):
        def predict(self, state):
            time.sleep(0.002)
            return super().predict(state)

        def observe(self, frame, prediction, state):
            time.sleep(0.003)
            return super().observe(frame, prediction, state)

    scores = Evaluator(random_frames(4, 5, 1, 11, 11), batch_size=2).evaluate(Slow())
    # 2 batches of 5 steps of 5 ms, 20 frames
    assert 0 < scores.frames_per_second <= 20 / 0.05


@pytest.mark.parametrize("index", [1, 4])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_is_refused(index, bad):
    def wrong(frame):
        frame = frame.clone()
        frame[0, 0, 3, :2] = bad
        return frame

    message = rf"prediction of frame {index} must be finite; got 2 NaN .* the 363 of shape \[3, 1, 11, 11\]"
    with pytest.raises(ValueError, match=message):
        Evaluator(random_frames(3, 5, 1, 11, 11)).evaluate(WrongAt(index, wrong))


@pytest.mark.parametrize("index", [1, 4])
def test_a_prediction_of_another_shape_is_refused(index):
    message = rf"prediction of frame {index} must have the shape \[3, 1, 11, 12\] of the frame; got \[3, 11, 12\]"
    with pytest.raises(ValueError, match=message):
        Evaluator(random_frames(3, 5, 1, 11, 12)).evaluate(WrongAt(index, lambda frame: frame[:, 0]))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(3, 5, 11, 11), r"\[sequences, time, channels, height, width\]; got \[3, 5, 11, 11\]"),
        (torch.zeros(0, 5, 1, 11, 11), r"got \[0, 5, 1, 11, 11\]"),
        (torch.zeros(3, 1, 1, 11, 11), r">= 2 frames, because frame 1 is never scored; got 1"),
        (torch.zeros(3, 5, 1, 11, 11, dtype=torch.uint8), r"floating point in 0..1; got torch.uint8"),
        (torch.full((3, 5, 1, 11, 11), 255.0), r"lie in 0..1 and be finite; got values from 255 to 255"),
        (torch.full((3, 5, 1, 11, 11), -0.5), r"got values from -0.5 to -0.5"),
        (torch.full((3, 5, 1, 11, 11), math.nan), r"got values from nan to nan"),
    ],
)
def test_bad_frames_are_refused(frames, message):
    with pytest.raises(ValueError, match=message):
        Evaluator(frames)


def test_a_bad_batch_size_is_refused():
    with pytest.raises(ValueError, match="batch_size must be >= 1; got 0"):
        Evaluator(torch.zeros(3, 5, 1, 11, 11), batch_size=0)


def test_json_holds_what_it_must_and_reads_back():
    frames = random_frames(3, 12, 1, 11, 11)
    scores = Evaluator(frames).evaluate(CopyLast(), "copy-last")

    def refuse(constant):
        raise AssertionError(constant)

    data = json.loads(scores.to_json(), parse_constant=refuse)
    assert data["model"] == "copy-last"
    assert data["frames_sha256"] == frames_sha256(frames)
    assert data["sequences"] == 3
    assert set(data["frame_squared_error"]) == {"all_predictable", "after_2", "after_10"}
    for summary in (*data["frame_squared_error"].values(), data["peak_signal_noise_ratio"]):
        assert set(summary) == {"mean", "sd"}
        assert summary["sd"] > 0
    assert set(data["structural_similarity"]) == {"mean", "sd"}
    assert data["by_frame"][0] is None
    assert len(data["by_frame"]) == 12
    assert data["frames_per_second"] > 0
    assert NextFrameScores.model_validate_json(scores.to_json()) == scores


def test_scores_are_frozen():
    scores = Evaluator(random_frames(2, 3, 1, 11, 11)).evaluate(CopyLast())
    with pytest.raises(ValueError, match="frozen"):
        scores.sequences = 5


def test_the_table_shows_every_number():
    frames = hand_made()
    table = Evaluator(frames).evaluate(Black(), "my model").table()
    lines = [line.split() for line in table.splitlines()]
    assert table.startswith("my model: 3 sequences of 12 frames")
    assert f"frames sha256 {frames_sha256(frames)}" in table
    assert ["squared", "error,", "all_predictable", "2..12", "0.080", "±", "0.010"] in lines
    assert ["squared", "error,", "after_2", "3..12", "0.085", "±", "0.010"] in lines
    assert ["squared", "error,", "after_10", "11..12", "0.125", "±", "0.010"] in lines
    assert ["1..10", "-", *(f"{(t + 1) / 100:.3f}" for t in range(2, 11))] in lines
    assert ["11..12", "0.120", "0.130"] in lines
    assert all(len(line) <= 120 for line in table.splitlines())


def test_sha256_is_that_of_the_little_endian_floats():
    frames = random_frames(2, 2, 1, 2, 3)
    expected = hashlib.sha256(b"".join(struct.pack("<f", value) for value in frames.flatten().tolist())).hexdigest()
    assert frames_sha256(frames) == expected
    assert frames_sha256(frames.double()) == expected
    assert frames_sha256(frames.transpose(3, 4).contiguous().transpose(3, 4)) == expected
    assert frames_sha256(frames.flip(0)) != expected


def test_seeds_are_apart():
    assert len({0, splits.TEST_SEED, splits.VALIDATION_SEED}) == 3


def test_bouncing_ball_frames_are_fixed_and_the_splits_differ():
    test = bouncing_ball_frames("test", 3)
    assert test.shape == (3, 100, 1, 30, 30)
    assert test.dtype == torch.float32
    assert torch.equal(bouncing_ball_frames("test", 2), test[:2])
    validation = bouncing_ball_frames("validation", 3)
    assert all(not torch.equal(a, b) for a in test[:, 0] for b in validation[:, 0])


def test_bouncing_ball_frames_refuses_bad_arguments():
    with pytest.raises(ValueError, match="split must be one of test, validation; got 'train'"):
        bouncing_ball_frames("train")
    with pytest.raises(ValueError, match="sequences must be >= 1; got 0"):
        bouncing_ball_frames("test", 0)


def test_copy_last_on_the_test_sequences_is_the_published_figure():
    scores = Evaluator(bouncing_ball_frames("test"), similarity=False).evaluate(CopyLast())
    assert scores.sequences == 200
    assert scores.frame_squared_error.all_predictable.mean == pytest.approx(11.85, abs=0.3)
    assert scores.frame_squared_error.all_predictable.sd == pytest.approx(0.28, abs=0.06)


# --- Before the rectifier ---------------------------------------------------------------------------------------------


def two_models():
    """The same stack without a rectifier and with one; none of their weights is 0."""
    torch.manual_seed(0)
    layer = LayerConfig(
        groups=8, active_groups=2, normalisation="location", activation="sigmoid", output_bias="channel"
    )
    plain = VideoPredictor(ModelConfig(layers=(layer,), pad=1)).eval()
    rectifier = CompactConfig(width=4, blocks=1)
    rectified = VideoPredictor(ModelConfig(layers=(layer,), pad=1, rectifier=rectifier)).eval()
    with torch.no_grad():
        plain.stack.layers[0].recurrent.mul_(20)
        plain.stack.layers[0].bias.normal_()
        for weight in rectified.rectifier.parameters():
            weight.normal_(0, 0.3)
    rectified.stack.load_state_dict(plain.stack.state_dict())
    return plain, rectified


def test_a_rectified_model_is_scored_before_and_after():
    plain, rectified = two_models()
    frames = random_frames(3, 12, 1, 12, 12)
    before, after = (Evaluator(frames, batch_size=2).evaluate(model) for model in (plain, rectified))
    assert before.raw_frame_squared_error is None
    assert after.raw_frame_squared_error == before.frame_squared_error
    assert after.frame_squared_error.all_predictable != before.frame_squared_error.all_predictable
    errors = (predict_sequences(rectified, frames).frames[:, 1:] - frames[:, 1:]).square().sum((2, 3, 4)).mean(1)
    assert after.frame_squared_error.all_predictable.mean == pytest.approx(errors.mean().item(), rel=1e-5)
    assert "raw squared error" not in before.table()
    raw = after.raw_frame_squared_error.all_predictable
    line = next(line.split() for line in after.table().splitlines() if line.startswith("raw squared error"))
    assert line == ["raw", "squared", "error", "2..12", f"{raw.mean:.3f}", "±", f"{raw.sd:.3f}"]
    assert NextFrameScores.model_validate_json(after.to_json()) == after


def test_predicted_sequences_hold_the_raw_frames():
    plain, rectified = two_models()
    frames = random_frames(2, 5, 1, 12, 12)
    without, with_ = predict_sequences(plain, frames), predict_sequences(rectified, frames)
    assert without.raw is None
    assert predict_sequences(CopyLast(), frames).raw is None
    assert torch.equal(with_.raw, without.frames)
    assert with_.frames.shape == with_.raw.shape
    assert (with_.frames - with_.raw).abs().max() > 0.01


# --- Imagined frames --------------------------------------------------------------------------------------------------


def test_imagining_is_the_plain_loop():
    for model in two_models():
        frames = random_frames(3, 5, 1, 12, 12)
        with torch.no_grad():
            state = model.initial_state((3, 1, 12, 12))
            for frame in frames.unbind(1):
                state = model.observe(frame, model.predict(state), state)
            expected = []
            for _ in range(4):
                prediction = model.predict(state)
                expected.append(prediction.frame)
                state = model.observe(prediction.frame, prediction, state)
        assert torch.equal(imagine(model, frames, 4), torch.stack(expected, 1))
        assert torch.equal(imagine(model, frames, 2), torch.stack(expected[:2], 1))
        torch.testing.assert_close(imagine(model, frames, 4, batch_size=2), torch.stack(expected, 1))


def test_imagining_leaves_frames_and_modes_as_they_were():
    class Vandal(CopyLast):
        def observe(self, frame, prediction, state):
            seen = super().observe(frame.clone(), prediction, state)
            frame.fill_(0.5)
            return seen

    frames = random_frames(3, 4, 1, 11, 11)
    kept = frames.clone()
    imagine(Vandal(), frames, 3)
    assert torch.equal(frames, kept)
    dream = imagine(CopyLast(), frames, 3, batch_size=2)
    assert torch.equal(dream, frames[:, -1:].expand(-1, 3, -1, -1, -1))
    module = Module()
    module.inner[0].eval()
    imagine(module, frames, 2)
    assert module.seen == {(True, False, False, False, False)}
    assert [part.training for part in module.modules()] == [True, True, False, True]


def test_imagining_refuses_bad_arguments():
    frames = random_frames(2, 3, 1, 11, 11)
    with pytest.raises(ValueError, match="batch_size must be >= 1; got 0"):
        imagine(CopyLast(), frames, 2, batch_size=0)
    with pytest.raises(ValueError, match="steps must be >= 1; got 0"):
        imagine(CopyLast(), frames, 0)


class Seer:
    """Knows the whole video and shows it, whatever it is told."""

    def __init__(self, video):
        self.video = video

    def initial_state(self, shape):
        assert tuple(shape) == (len(self.video), *self.video.shape[2:])
        return (torch.zeros(len(self.video), dtype=torch.int64),)

    def predict(self, state):
        return Predicted(self.video[:, int(state[0][0])])

    def observe(self, frame, prediction, state):
        return (state[0] + 1,)


def true_video(sequences=4, length=200):
    return bouncing_ball_sequences(sequences, seed=splits.VALIDATION_SEED, sequence_length=length).frames


def test_the_true_world_is_a_perfect_dream():
    video = true_video()
    scores = evaluate_rollouts(Seer(video), video[:, :100])
    assert (scores.prime, scores.steps, scores.simulator) == (50, 150, None)
    physics = scores.physics
    assert [tracked.step for tracked in physics.tracked] == [1, 5, 10, 20, 30]
    assert all(tracked.median == tracked.mean == 0 and tracked.share == 1 for tracked in physics.tracked)
    assert physics.never_ended == 1
    assert physics.lifetime == 150
    assert [(w.first, w.last) for w in physics.windows] == [(1, 50), (101, 150), (1, 150)]
    for window in physics.windows:
        assert window.right_count == 1
        assert window.mass == pytest.approx(1, abs=0.02)
        assert window.kinetic_energy == pytest.approx(2.25, abs=0.01)
        assert window.outside == window.overlap == 0


def test_a_dream_one_frame_late_is_as_far_off_as_the_balls_move():
    """The dream is put beside the frames that follow the priming, not one earlier or later."""
    video = true_video(6, 60)
    late = evaluate_rollouts(Seer(video.roll(1, 1)), video, prime=20, steps=30)
    assert all(0.3 < tracked.median < 1.5 for tracked in late.physics.tracked)


def test_a_dream_that_stands_still_is_found_out():
    video = true_video(6, 100)
    scores = evaluate_rollouts(CopyLast(), video, prime=50, steps=60, batch_size=4)
    physics = scores.physics
    assert physics.windows[-1].kinetic_energy == pytest.approx(0, abs=1e-6)
    assert physics.windows[-1].right_count == 1  # what it shows is sharp
    assert physics.windows[-1].bounce_rate < 0.1
    assert physics.lifetime <= 5
    assert physics.never_ended == 0
    errors = [tracked.median for tracked in physics.tracked]
    assert 0.3 < errors[0] < 1.5  # what balls move in a frame
    assert errors[0] < errors[1] < errors[2]
    assert errors[-1] > 3


def test_dreams_go_on_where_the_true_frames_end():
    video = true_video(3, 60)
    tracked = evaluate_rollouts(CopyLast(), video, prime=50, steps=20).physics.tracked
    assert [error.step for error in tracked] == [1, 5, 10]
    scores = evaluate_rollouts(CopyLast(), video, prime=60, steps=20)
    assert scores.physics.tracked == ()
    assert "tracked error" not in scores.table()


@pytest.mark.parametrize("prime", [0, -1, 6])
def test_a_priming_beyond_the_sequence_is_refused(prime):
    with pytest.raises(ValueError, match=f"prime must be in 1..5, the frames of a sequence; got {prime}"):
        evaluate_rollouts(CopyLast(), torch.zeros(2, 5, 1, 30, 30), prime=prime, steps=3)


def test_rollouts_refuse_bad_arguments():
    frames = torch.zeros(2, 5, 1, 30, 30)
    with pytest.raises(ValueError, match="steps must be >= 1; got 0"):
        evaluate_rollouts(CopyLast(), frames, prime=2, steps=0)
    with pytest.raises(ValueError, match="batch_size must be >= 1; got 0"):
        evaluate_rollouts(CopyLast(), frames, prime=2, steps=3, batch_size=0)
    with pytest.raises(ValueError, match="lie in 0..1 and be finite"):
        evaluate_rollouts(CopyLast(), frames + 2, prime=2, steps=3)


def test_the_world_itself_loses_the_true_balls():
    """A few hundredths of a pixel at first, and many times that after the bounces."""
    errors = simulator_tracked_error("validation", 40)
    assert [error.step for error in errors] == [1, 5, 10, 20, 30]
    medians = [error.median for error in errors]
    # The mean length of a vector with normal parts of deviation 0.03.
    assert medians[0] == pytest.approx(0.03 * math.sqrt(math.pi / 2), abs=0.008)
    assert medians == sorted(medians)
    assert 1.5 * medians[0] < medians[-1] < 4
    assert all(error.share == 1 for error in errors)
    assert simulator_tracked_error("validation", 40) == errors
    assert simulator_tracked_error("test", 40) != errors


def test_the_simulator_refuses_bad_arguments():
    with pytest.raises(ValueError, match="split must be one of test, validation; got 'train'"):
        simulator_tracked_error("train")
    with pytest.raises(ValueError, match="sequences must be >= 1; got 0"):
        simulator_tracked_error("test", 0)


def test_rollout_scores_in_table_and_json():
    video = true_video(3, 100)
    simulator = simulator_tracked_error("validation", 3)
    scores = evaluate_rollouts(CopyLast(), video, simulator=simulator)
    table = scores.table()
    assert all(len(line) <= 120 for line in table.splitlines())
    assert table.startswith("3 dreams of 150 steps after 50 true frames")
    lines = [line.split() for line in table.splitlines()]
    assert ["world", "1..50", "101..150", "1..150"] in lines
    assert ["kinetic", "energy,", "px²", "2.25", "0.000", "0.000", "0.000"] in lines
    assert ["tracked", "error,", "px", "(median)", "1", "5", "10", "20", "30"] in lines
    for name, errors in (("of the dream", scores.physics.tracked), ("off at the start", simulator)):
        line = next(line for line in table.splitlines() if name in line)
        assert line.split()[-5:] == [f"{error.median:.3f}" for error in errors]
    assert RolloutScores.model_validate_json(scores.model_dump_json()) == scores
    both = Evaluator(video).evaluate(CopyLast()).model_copy(update={"rollout": scores})
    assert table in both.table()
    assert all(len(line) <= 120 for line in both.table().splitlines())
    assert NextFrameScores.model_validate_json(both.to_json()) == both
    assert json.loads(both.to_json())["rollout"]["physics"]["tracked"][0]["step"] == 1


def test_a_line_adds_a_measure_to_every_evaluation(monkeypatch):
    def brightest_error(prediction, frame):
        return (prediction - frame).abs().amax((-3, -2, -1)).double()

    frames = torch.rand(2, 4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    before = Evaluator(frames).evaluate(CopyLast()).to_json()
    monkeypatch.setitem(FRAME_SCORES, "brightest_error", FrameScore("brightest error", brightest_error))
    scores = Evaluator(frames).evaluate(CopyLast())
    expected = (frames[:, :-1] - frames[:, 1:]).abs().amax((2, 3, 4)).double().mean(1).mean()
    assert scores.frame_scores["brightest_error"].mean == pytest.approx(float(expected))
    assert "brightest error                 2..4" in scores.table()
    written = json.loads(scores.to_json())
    assert set(written) == {*json.loads(before), "brightest_error"}
    assert NextFrameScores.model_validate_json(scores.to_json()) == scores
    # What was written before there was the measure can still be read.
    assert NextFrameScores.model_validate_json(before).peak_signal_noise_ratio == scores.peak_signal_noise_ratio


def test_measures_that_frames_are_too_small_for_are_left_out():
    scores = Evaluator(torch.rand(1, 3, 1, 8, 8), similarity=False).evaluate(CopyLast())
    assert scores.structural_similarity is None
    assert json.loads(scores.to_json())["structural_similarity"] is None
