"""Updates that are recorded and replayed against updates that run as they are written: the same bits."""

import copy
import itertools
import threading
import time

import pytest
import torch
from elsewhere import look_at_no_values
from lessons import teach
from small_online import SIZE, STREAMS, balls, learner_of
from tape import Tape
from torch import nn

from torchrsm import LearningConfig, LocalLearning, Trainer, preset
from torchrsm.baselines import make_baseline
from torchrsm.learning.captured import overwrite, put_back
from torchrsm.learning.muon import Muon
from torchrsm.learning.online import OnlineLearner
from torchrsm.learning.windows import SequenceLearner
from torchrsm.precision import precision, products_in
from torchrsm.rsm import kernels
from torchrsm.rsm.layer import RSMLayer
from torchrsm.runs.record import METRICS_FILE
from torchrsm.state import flatten, map_state
from torchrsm.streams import ArrayStream, BouncingBalls, BouncingBallsOnDevice, StreamBatch, Turns
from torchrsm.streams.stream import StreamInPlace

STEPS = 60
SEQUENCE = 17  # frames


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch):
    look_at_no_values(monkeypatch)


def not_recorded(device):
    return None


def twins(make):
    """A learner whose updates run as they are written, the same one whose updates are taped, and the tape."""
    tape = Tape()
    pair = [graph_ready(make(recorder_for)) for recorder_for in (not_recorded, lambda device: tape)]
    return *pair, tape


def graph_ready(learner):
    """On the dense engine, whose every operator is torch's, and with rates that are tensors, as on a CUDA device."""
    for part in learner.model.modules():
        if isinstance(part, RSMLayer):
            part.engine = "reference"
    for optimiser in learner.optimisers:
        for group in optimiser.param_groups:
            if not isinstance(optimiser, torch.optim.SGD):
                group["lr"] = torch.tensor(group["lr"])
    return learner


def in_order(learner):
    """Lay the state of a learner out in memory as recorded updates keep it, row by row, and return the learner.

    A convolution of one channel rounds in another way where its input is laid out otherwise.
    """
    learner.state = map_state(lambda part: part.clone(memory_format=torch.contiguous_format), learner.state)
    return learner


def all_of(learner):
    """Copies of everything that an update changes, but for random numbers."""
    found = flatten("state", learner.state)
    for name, module in learner.modules.items():
        found |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    for number, optimiser in enumerate(learner.optimisers):
        for weight, entry in optimiser.state_dict()["state"].items():
            found |= {f"{number}.{weight}.{key}": value for key, value in entry.items()}
    return {name: value.detach().clone() for name, value in found.items()}


def assert_same(one, other):
    """Equal bits; what only one of them remembers yet is 0."""
    for name in one.keys() | other.keys():
        a, b = (found.get(name, torch.zeros(())) for found in (one, other))
        assert torch.equal(*torch.broadcast_tensors(a, b)), name


def online(**settings):
    return lambda recorder_for: learner_of(recorder_for=recorder_for, **settings)[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"rectifier": "compact"},
        {"rectifier": "unet", "input_frames": 3, "dropout": 0.0},
        {"rectifier": "compact", "share": 0.5, "stack_share": None},
    ],
    ids=["dropout", "frames side by side", "one after the other"],
)
def test_replayed_updates_are_the_written_ones(settings):
    """In all phases, with dropout, a discriminator's noise, dreams and rates that change."""
    plain, taped, tape = twins(online(**settings))
    states = [value.data_ptr() for value in flatten("state", taped.state).values()]
    dreamt, phases, stream = set(), set(), balls()
    torch.manual_seed(4)
    for step, batch in zip(range(STEPS), stream, strict=False):
        progress, ends = step / STEPS, []
        phase = plain.phase(progress)
        if phase not in phases:
            plain.begin(phase, 1)
            taped.begin(phase, 1)
        phases.add(phase)
        random = torch.get_rng_state()
        for learner in (plain, taped):
            torch.set_rng_state(random)
            taught = in_order(learner).teach([batch], progress)
            ends.append((*(figure.clone() for figure in taught), torch.get_rng_state()))
        assert all(map(torch.equal, *ends)), step
        dreamt |= set(plain.state.alone.tolist())
        if step % 7 == 0:
            assert_same(all_of(plain), all_of(taped))
    assert_same(all_of(plain), all_of(taped))
    assert {-2, -1, 0, 1, 3} <= dreamt
    assert tape.recorded == len(phases) >= 2
    assert tape.replayed == STEPS
    assert [value.data_ptr() for value in flatten("state", taped.state).values()] == states


def test_a_state_that_is_set_is_the_one_that_is_replayed():
    plain, taped, _ = twins(online())
    stream = balls()
    teach(taped, stream, 0.9)
    for _ in range(3):
        teach(plain, stream, 0.9)
    taped.state = plain.state
    assert_same(flatten("state", plain.state), flatten("state", taped.state))
    assert not {t.data_ptr() for t in flatten("s", plain.state).values()} & {
        t.data_ptr() for t in flatten("s", taped.state).values()
    }
    taped.model.load_state_dict(plain.model.state_dict())
    batch = next(stream)
    taped.begin("stack", 1)
    plain.begin("stack", 1)
    ends = []
    for learner in (plain, taped):
        torch.manual_seed(0)
        ends.append(in_order(learner).teach([batch], 0.1).sums)
    assert torch.equal(*ends)


class ArrayInPlace(ArrayStream):
    """A stream of an array, whose next frames are found by tensor operations alone."""

    def __init__(self, frames, batch_size):
        super().__init__(frames, batch_size)
        batches = [super(ArrayInPlace, self).__next__() for _ in range(frames.shape[1])]
        self._all = StreamBatch(*(torch.stack(parts) for parts in zip(*(batch[:3] for batch in batches), strict=True)))
        self._at = torch.tensor(0)
        self.batch = StreamBatch(*(torch.zeros_like(part[0]) for part in self._all[:3]))
        self.prepared = 0

    def prepare(self):
        self.prepared += 1

    def advance(self):
        for part, every in zip(self.batch[:3], self._all[:3], strict=True):
            part.copy_(every.index_select(0, self._at[None])[0])
        self._at.add_(1)

    def __next__(self):
        self.prepare()
        self.advance()
        return StreamBatch(*(part.clone() for part in self.batch[:3]))


def noise_stream(steps, kind):
    return kind(torch.rand(4, steps, 10, 10, generator=torch.Generator().manual_seed(0)), 4)


def test_a_stream_in_place_is_a_part_of_what_is_recorded():
    plain, taped, tape = twins(online())
    written, _, _ = twins(online())
    whole, steps = noise_stream(12, ArrayStream), 12
    streams = [noise_stream(steps, ArrayInPlace) for _ in range(2)]
    assert all(isinstance(stream, StreamInPlace) for stream in streams)
    assert not isinstance(whole, StreamInPlace)
    for step in range(steps):
        progress, random = step / steps, torch.get_rng_state()
        errors = [teach(in_order(plain), whole, progress).sums]
        for learner, stream in ((taped, streams[0]), (written, streams[1])):
            torch.set_rng_state(random)
            errors.append(in_order(learner).teach_in_place(stream, progress).sums.clone())
        assert torch.equal(errors[0], errors[1]), step
        assert torch.equal(errors[0], errors[2]), step
    assert_same(all_of(plain), all_of(taped))
    assert_same(all_of(plain), all_of(written))
    assert tape.recorded == 3  # one for each phase
    assert [stream.prepared for stream in streams] == [steps, steps]


def balls_in_place():
    return BouncingBallsOnDevice(STREAMS, resolution=SIZE, sequence_length=SEQUENCE, seed=1, device="cpu")


def test_balls_in_place_are_a_part_of_what_is_recorded():
    """Over more than three sequences, so that starts are drawn anew, and through all phases."""
    plain, taped, tape = twins(online())
    ours, theirs = balls_in_place(), balls_in_place()
    steps = 3 * SEQUENCE + 5
    begun, numbers = 0, set()
    for step in range(steps):
        progress, random = step / steps, torch.get_rng_state()
        expected = in_order(plain).teach_in_place(ours, progress).sums
        torch.set_rng_state(random)
        assert torch.equal(expected, taped.teach_in_place(theirs, progress).sums), step
        assert all(map(torch.equal, ours.batch[:3], theirs.batch[:3])), step
        begun += int(theirs.batch.starts.sum())
        numbers |= set(theirs.batch.index.tolist())
    assert_same(all_of(plain), all_of(taped))
    assert begun >= 3 * STREAMS
    assert len(numbers) >= 3 * STREAMS
    assert (tape.recorded, tape.replayed) == (3, steps)
    assert ours.state_dict() == theirs.state_dict()


def test_balls_in_place_go_on_from_a_position():
    """Another learner, with its own recorded update, takes up where the first one was stopped, in mid-sequence."""
    whole, first, second = (twins(online())[1] for _ in range(3))
    stream, parts = balls_in_place(), [balls_in_place(), balls_in_place()]
    stop, steps = 2 * SEQUENCE + 3, 3 * SEQUENCE + 5
    torch.manual_seed(3)
    expected = [whole.teach_in_place(stream, 0.1).sums.clone() for _ in range(steps)]
    torch.manual_seed(3)
    sums = [first.teach_in_place(parts[0], 0.1).sums.clone() for _ in range(stop)]
    second.model.load_state_dict(first.model.state_dict())
    for mine, theirs in zip(second.optimisers, first.optimisers, strict=True):
        mine.load_state_dict(copy.deepcopy(theirs.state_dict()))
    second.state = first.state
    parts[1].load_state_dict(parts[0].state_dict())
    sums += [second.teach_in_place(parts[1], 0.1).sums.clone() for _ in range(steps - stop)]
    assert all(map(torch.equal, expected, sums))
    assert_same(all_of(whole), all_of(second))


def test_a_run_on_balls_in_place_goes_on_exactly_from_its_checkpoint(tmp_path, monkeypatch):
    steps, stop = 3 * 20 + 4, 30  # sequences of the preset have 20 frames
    run = preset("tiny").replace(
        **{"training.steps": steps, "training.checkpoint_seconds": 0.0, "training.batch_size": 3}
    )

    def taped(*args, **how):
        tapes.append(Tape())
        return graph_ready(OnlineLearner(*args, **how, recorder_for=lambda device: tapes[-1]))

    def in_place(config, batch_size, seed, device):
        return BouncingBallsOnDevice(batch_size, seed=seed, device=device, **config.arguments())

    tapes = []
    monkeypatch.setattr("torchrsm.runs.settings.OnlineLearner", taped)
    monkeypatch.setattr("torchrsm.runs.trainer.make_stream", in_place)
    whole = Trainer(run, tmp_path / "whole").run()
    stopped = Trainer(run, tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        stopped.run(lambda record: stopped.stop() if record.step == stop else None)
    resumed = Trainer(run, tmp_path / "parts", resume=True)
    assert resumed.step == stop
    assert_same(whole.state_dict(), resumed.run().state_dict())
    assert (tmp_path / "whole" / METRICS_FILE).read_text() == (tmp_path / "parts" / METRICS_FILE).read_text()
    assert [tape.replayed for tape in tapes] == [steps, stop, steps - stop]


def test_another_precision_is_recorded_anew():
    """A graph keeps the precision that it was recorded with."""
    plain, taped, tape = twins(online())
    seen = []
    update = taped._update

    def noting(*args):
        seen.append(precision())
        return update(*args)

    taped._update = noting
    for step, setting in enumerate(["float32", "float32", "tf32", "tf32", "float32"]):
        batch = next(balls())
        with products_in(setting):
            torch.manual_seed(step)
            expected = in_order(plain).teach([batch], 0.1).sums
            torch.manual_seed(step)
            assert torch.equal(expected, taped.teach([batch], 0.1).sums)
    assert tape.recorded == 3
    assert [setting for setting, others in itertools.groupby(seen)] == ["float32", "tf32", "float32"]


def test_no_step_of_a_recorded_update_is_taken_in_another_thread():
    """There it would go to another stream of the device, where nothing is recorded."""
    model = online()(not_recorded).model.to("meta")
    learning = LocalLearning(model, LearningConfig(learning_rates=(1e-3,)))
    threads = []

    def step():
        time.sleep(0.05)  # long enough for another thread to take the next one
        threads.append(threading.current_thread())

    for optimiser in learning.optimisers:
        optimiser.step = step
    with kernels.threads_in_use(4):
        learning.step(model.predict_raw(model.initial_state((1, 1, SIZE, SIZE))))
    assert threads == [threading.main_thread()] * 2


BASELINE_STREAMS = 2


def baseline(name, **changes):
    run = preset(name)
    learning = run.learning.replace(**({"window": 4} | changes))

    def make(recorder_for):
        torch.manual_seed(0)
        model = make_baseline(run.model.replace(height=12, width=12))
        return SequenceLearner(model, learning, (BASELINE_STREAMS, 1, 12, 12), recorder_for=recorder_for)

    return make


@pytest.mark.parametrize("name", ["simvp", "unet", "predrnn", "convlstm-wide"])
def test_replayed_windows_are_the_written_ones(name):
    plain, taped, tape = twins(baseline(name))
    stream = BouncingBalls(BASELINE_STREAMS, resolution=12, sequence_length=9, seed=1)
    for step in range(6):
        batches = [next(stream) for _ in range(4)]
        figures = [in_order(learner).teach(batches, step / 6).sums.clone() for learner in (plain, taped)]
        assert torch.equal(*figures), step
    assert_same(all_of(plain), all_of(taped))
    assert (tape.recorded, tape.replayed) == (1, 6)


def test_windows_of_a_stream_in_place():
    def make(recorder_for):
        torch.manual_seed(0)
        model = make_baseline(preset("convlstm").model.replace(height=10, width=10))
        learning = preset("convlstm").learning.replace(window=4)
        return SequenceLearner(model, learning, (4, 1, 10, 10), recorder_for=recorder_for)

    plain, taped, tape = twins(make)
    whole, in_place = noise_stream(12, ArrayStream), noise_stream(12, ArrayInPlace)
    for _ in range(3):
        assert torch.equal(teach(in_order(plain), whole).sums, taped.teach_in_place(in_place, 0.5).sums)
    assert_same(all_of(plain), all_of(taped))
    assert (tape.recorded, tape.replayed) == (2, 3 + 12)  # the stream's step and the update


def test_a_model_that_asks_for_values_runs_as_it_is_written():
    tape = Tape()
    learner = baseline("seq2seq-convlstm-multi-decoder", window=10)(lambda device: tape)
    assert learner.model.asks_for_values
    teach(learner, BouncingBalls(BASELINE_STREAMS, resolution=12, seed=1))
    assert tape.recorded == 0


def test_a_run_goes_on_exactly_from_its_checkpoint(tmp_path, monkeypatch):
    """The tensors of recorded updates hold what the checkpoint held."""
    run = preset("tiny")
    run = run.replace(**{"training.steps": 24, "training.checkpoint_seconds": 0.0, "training.batch_size": 2})
    tapes = []

    def taped(*args, **how):
        tapes.append(Tape())
        return graph_ready(OnlineLearner(*args, **how, recorder_for=lambda device: tapes[-1]))

    monkeypatch.setattr("torchrsm.runs.settings.OnlineLearner", taped)
    whole = Trainer(run, tmp_path / "whole").run()
    written = tapes[0].replayed
    stopped = Trainer(run, tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        stopped.run(lambda record: stopped.stop() if record.step == 10 else None)
    resumed = Trainer(run, tmp_path / "parts", resume=True)
    assert resumed.step == 10
    parts = resumed.run()
    assert_same(whole.state_dict(), parts.state_dict())
    records = [(tmp_path / name / METRICS_FILE).read_text() for name in ("whole", "parts")]
    assert records[0] == records[1]
    assert len(records[0].splitlines()) == 3
    assert written == 24
    assert [tape.recorded for tape in tapes] == [1, 1, 1]


def test_a_run_takes_a_stream_in_place_without_a_look_at_its_frames(tmp_path, monkeypatch):
    run = preset("tiny").replace(**{"training.steps": 10, "training.batch_size": 4, "model.rectifier": None})
    run = run.replace(**{"model.height": 10, "model.width": 10})
    ends = []
    for name, kind in (("whole", ArrayStream), ("in-place", ArrayInPlace)):
        trainer = Trainer(run, tmp_path / name, stream=noise_stream(12, kind))
        if kind is ArrayInPlace:
            monkeypatch.setattr(trainer, "_next_batch", None)
        ends.append(trainer.run().state_dict())
    assert_same(*ends)
    assert (tmp_path / "whole" / METRICS_FILE).read_text() == (tmp_path / "in-place" / METRICS_FILE).read_text()


class Failing(Tape):
    def record(self, work):
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


class FailingLate(Tape):
    """As torch's graphs do: what went wrong first is not what is said last."""

    def record(self, work):
        try:
            raise RuntimeError("a value was asked for")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")


def test_the_first_error_of_a_recording_is_told():
    learner = graph_ready(online()(lambda device: FailingLate()))
    with pytest.warns(UserWarning, match="which is slower: a value was asked for$"):
        teach(learner, balls(), 0.1)


def test_what_cannot_be_recorded_runs_as_it_is_written():
    plain, _, _ = twins(online())
    failing = graph_ready(online()(lambda device: Failing()))
    stream, other = balls(), balls()
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="which is slower: operation not permitted when stream is capturing$"):
        first = teach(failing, other, 0.1).sums.clone()
    torch.manual_seed(1)
    assert torch.equal(teach(plain, stream, 0.1).sums, first)
    for seed in range(3):
        torch.manual_seed(seed)
        expected = teach(in_order(plain), stream, 0.1).sums
        torch.manual_seed(seed)
        assert torch.equal(expected, teach(failing, other, 0.1).sums)
    assert_same(all_of(plain), all_of(failing))


# --- Parts ------------------------------------------------------------------------------------------------------------


def optimisers(weights):
    yield torch.optim.Adam(weights, 0.1, fused=True)
    yield torch.optim.RMSprop(weights, 0.1, momentum=0.5, foreach=True)
    yield torch.optim.SGD(weights, 0.1, momentum=0.5, fused=True)
    yield torch.optim.SGD(weights, 0.1)
    yield Muon([(weight, False) for weight in weights], 0.1)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("steps_before", [0, 2])
def test_what_is_put_back_goes_on_as_if_nothing_had_been(number, steps_before):
    def begun():
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 4, 3, bias=False)
        return layer, list(optimisers([layer.weight]))[number]

    def step(layer, optimiser):
        optimiser.zero_grad()
        (layer(torch.rand(2, 3, 5, 5)) ** 2).sum().backward()
        optimiser.step()

    (one, first), (other, second) = begun(), begun()
    for layer, optimiser in ((one, first), (other, second)):
        torch.manual_seed(1)
        for _ in range(steps_before):
            step(layer, optimiser)
    place, before = one.weight.data_ptr(), one.weight.detach().clone()
    random = torch.get_rng_state()
    with put_back([one.weight], [first]):
        for _ in range(3):
            step(one, first)
        assert not torch.equal(one.weight, before)
    assert torch.equal(one.weight, before)
    assert one.weight.data_ptr() == place
    assert one.weight.grad is None
    assert torch.equal(torch.get_rng_state(), random)
    step(one, first)
    torch.set_rng_state(random)
    step(other, second)
    assert torch.equal(one.weight, other.weight)


def test_an_error_in_the_block_changes_nothing_either():
    weight = nn.Parameter(torch.ones(2))

    def spoil():
        with put_back([weight], []):
            weight.data.zero_()
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        spoil()
    assert weight.tolist() == [1, 1]


def test_a_state_may_be_overwritten_by_its_own_parts():
    kept = (torch.tensor([1.0]), torch.tensor([2.0, 3.0]), (torch.tensor([4.0]),))
    places = [part.data_ptr() for part in flatten("s", kept).values()]
    overwrite(kept, (kept[2][0], kept[1].flip(0)[:], (kept[0].view(1),)))
    assert [part.tolist() for part in flatten("s", kept).values()] == [[4], [3, 2], [1]]
    assert [part.data_ptr() for part in flatten("s", kept).values()] == places
    shifted = (kept[0], torch.cat((kept[1][1:], kept[1][:1])), kept[2])
    expected = copy.deepcopy(shifted)
    overwrite(kept, shifted)
    assert_same(flatten("s", kept), flatten("s", expected))


def test_a_state_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"state\.0 must be \[2\]; got \[1\]"):
        overwrite((torch.zeros(2),), (torch.zeros(1),))


def test_another_batch_than_was_recorded_is_refused():
    taped = online()(lambda device: Tape())
    graph_ready(taped)
    batch = next(balls())
    taped.teach([batch], 0.1)
    with pytest.raises(ValueError, match=r"state.frames must be \[4, 1, 10, 10\]; got \[1, 1, 10, 10\]"):
        taped.teach([StreamBatch(*(part[:1] for part in batch[:3]))], 0.1)


def test_each_of_several_sizes_is_recorded_in_each_phase():
    base, learning, rectifying = learner_of(dropout=0.0)
    rectifying = rectifying.replace(adversarial_weight=0.0, discriminator_learning_rate=5e-4)
    model, shape = base.model.config, (STREAMS, 1, SIZE, SIZE)

    def make(recorder_for):
        torch.manual_seed(2)
        others = ((1, 14, 14),)
        return OnlineLearner(model, learning, rectifying, True, shape, recorder_for=recorder_for, others=others)

    plain, taped, tape = twins(make)
    large = BouncingBalls(STREAMS, resolution=14, sequence_length=SEQUENCE, first_sequence=1000)
    phases = set()
    for step, batch in zip(range(STEPS), Turns([balls(), large]), strict=False):
        phase = plain.phase(step / STEPS)
        if phase not in phases:
            plain.begin(phase, 1)
            taped.begin(phase, 1)
        phases.add(phase)
        for learner in (plain, taped):
            in_order(learner).teach([batch], step / STEPS)
    assert_same(all_of(plain), all_of(taped))
    assert any(name.startswith("state.1.layers") for name in all_of(taped))
    assert tape.recorded == 2 * len(phases) >= 4
    assert tape.replayed == STEPS
