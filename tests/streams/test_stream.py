import pytest
import torch

from torchrsm.streams import StreamBatch, check_stream
from torchrsm.streams.stream import element_positions


class Sound:
    """A stream that keeps the contract; each test breaks one clause of it. Sequences last three frames."""

    batch_size = 2
    frame_shape = (1, 4, 5)

    def __init__(self):
        self.step = 0

    def __iter__(self):
        return self

    def __next__(self):
        sequence, time = divmod(self.step, 3)
        self.step += 1
        frames = torch.full((2, 1, 4, 5), (self.step % 10) / 10)
        return StreamBatch(frames, torch.full((2,), time == 0), torch.tensor([2 * sequence, 2 * sequence + 1]))

    def state_dict(self):
        return {"stream": "Sound", "step": self.step}

    def load_state_dict(self, state):
        if state.get("stream") != "Sound":
            raise ValueError("foreign")
        self.step = state["step"]


class Finite(Sound):
    def __next__(self):
        if self.step == 7:
            raise StopIteration
        return super().__next__()


class Empty(Sound):
    def __next__(self):
        raise StopIteration


class NotItsOwnIterator(Sound):
    def __iter__(self):
        return Sound()


class NoBatch(Sound):
    batch_size = 0


class ListShape(Sound):
    frame_shape = [1, 4, 5]  # noqa: RUF012


class NegativeShape(Sound):
    frame_shape = (1, 4, -5)


class WrongShape(Sound):
    frame_shape = (1, 5, 4)


def changed(change):
    """Return a stream whose batches go through ``change(batch, step)``."""

    class Changed(Sound):
        def __next__(self):
            return change(super().__next__(), self.step - 1)

    return Changed


class Overwriting(Sound):
    memory = torch.zeros(2, 1, 4, 5)

    def __next__(self):
        batch = super().__next__()
        self.memory.copy_(batch.frames)
        return batch._replace(frames=self.memory)


class ForgetsItsPosition(Sound):
    def load_state_dict(self, state):
        super().load_state_dict({**state, "step": 0})


class ForgetsItsRandomness(Sound):
    calls = 0

    def __next__(self):
        self.calls += 1
        batch = super().__next__()
        return batch._replace(frames=batch.frames * (0.5 if self.calls > 20 else 1))


class Exhausted(Sound):
    calls = 0

    def __next__(self):
        self.calls += 1
        if self.calls > 20:
            raise StopIteration
        return super().__next__()


class AcceptsAnything(Sound):
    def load_state_dict(self, state):
        self.step = state.get("step", 0)


class TensorInState(Sound):
    def state_dict(self):
        return {"stream": "Sound", "step": torch.tensor(0)}


class HugeState(Sound):
    def state_dict(self):
        return {**super().state_dict(), "frames": [0.5] * 50_000}


BROKEN = [
    (NoBatch, "batch_size must be an integer of at least 1; got 0"),
    (ListShape, r"frame_shape must be \(channels, height, width\); got \[1, 4, 5\]"),
    (NegativeShape, "frame_shape: width must be an integer of at least 1; got -5"),
    (NotItsOwnIterator, "must return the stream itself"),
    (TensorInState, "state_dict must be ready for JSON"),
    (HugeState, "state_dict must take at most 65536 bytes of JSON"),
    (Empty, "at least one batch; got none"),
    (changed(lambda batch, step: tuple(batch)), "batch 0: must be a StreamBatch; got tuple"),
    (changed(lambda batch, step: batch._replace(starts=[True, True])), "starts must be a tensor; got list"),
    (WrongShape, r"batch 0: frames must be torch.float32 of shape \(2, 1, 5, 4\).*got.*\(2, 1, 4, 5\)"),
    (
        changed(lambda batch, step: batch._replace(frames=batch.frames.double())),
        "frames must be.*got torch.float64",
    ),
    (changed(lambda batch, step: batch._replace(starts=batch.starts.int())), "starts must be torch.bool of shape"),
    (changed(lambda batch, step: batch._replace(index=batch.index[:1])), "index must be torch.int64 of shape"),
    (changed(lambda batch, step: batch._replace(frames=batch.frames / (step != 4))), "batch 4: frames must be finite"),
    (
        changed(lambda batch, step: batch._replace(frames=batch.frames + (step == 4))),
        r"within 0\.\.1; got 1.5..1.5",
    ),
    (changed(lambda batch, step: batch._replace(frames=batch.frames - 0.5)), r"within 0\.\.1; got -0.4"),
    (changed(lambda batch, step: batch._replace(index=batch.index - 1)), "index must be 0 or more; got -1"),
    (
        changed(lambda batch, step: batch._replace(starts=batch.starts & (step > 0))),
        "batch 0: starts must be true on the first batch; got false at element 0",
    ),
    (
        changed(lambda batch, step: batch._replace(starts=batch.starts & torch.tensor([True, step != 6]))),
        "batch 6: starts must be true where the index changes; got false at element 1",
    ),
    (Overwriting, "batch 0 was overwritten by a later batch"),
    (AcceptsAnything, "must refuse a foreign position"),
    (ForgetsItsPosition, "must be the same when saved again"),
    (ForgetsItsRandomness, "batch 10 differs after the position at 10 was restored"),
    (Exhausted, "ends too early after the position at 10 was restored"),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_check_stream_names_the_violated_clause(broken, message):
    with pytest.raises(ValueError, match=message):
        check_stream(broken(), 20)


@pytest.mark.parametrize("stream", [Sound, Finite])
def test_check_stream_accepts_a_sound_stream_and_puts_it_back(stream):
    checked = stream()
    check_stream(checked, 20)
    assert checked.step == 0


def test_check_stream_refuses_too_few_steps():
    with pytest.raises(ValueError, match="steps must be an integer of at least 2; got 1"):
        check_stream(Sound(), 1)


def test_elements_play_their_sequences_one_after_the_other():
    played = [element_positions(step, 3, 4, False) for step in range(9)]
    assert [numbers.tolist() for numbers, _ in played[3:9:4]] == [[0, 1, 2], [3, 4, 5]]
    assert [times.tolist() for _, times in played] == [[step % 4] * 3 for step in range(9)]


def test_dephased_elements_begin_at_different_times():
    numbers, times = element_positions(0, 6, 4, True)
    assert numbers.tolist() == [0, 1, 2, 3, 4, 5]
    assert times.tolist() == [0, 1, 2, 3, 0, 1]
    numbers, times = element_positions(2, 6, 4, True)
    assert numbers.tolist() == [0, 1, 8, 9, 4, 5]
    assert times.tolist() == [2, 3, 0, 1, 2, 3]
