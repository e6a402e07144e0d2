"""What a rectifier of local stages costs beside one that learns end to end: time and memory of an update.

    python benchmarks/rectifier_cost.py --threads 1 --json benchmarks/results/rectifier_cost.json

Both learn from the same predictions of the same stack, that of ``--preset``, and take turns of a few updates. So what
else happens on the machine meets both alike; the ratio is that of two turns, one after the other. A turn is measured
in processor time with one thread, by the clock with more. Memory is what the gradient needs of the forward pass, and
the weights with what their optimisers keep; of local stages also the most that any one needs, as each could learn
before the next begins.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchrsm import VideoPredictor, preset
from torchrsm.learning.ranks import Ranks
from torchrsm.learning.rectifying import RectifierLearning
from torchrsm.model import Prediction
from torchrsm.rectifiers import RectifierConfig
from torchrsm.rectifiers.local import LocalConfig, LocalStages
from torchrsm.rsm import kernels
from torchrsm.runs.fitting import without_dreams
from torchrsm.runs.settings import RunConfig
from torchrsm.streams import BouncingBalls

WARM_UP = 2  # turns that are not counted

SEEN = 20  # frames of the stack before the one that the rectifiers learn from


class Learner:
    """A rectifier that learns from one prediction again and again.

    Args:
        run: of the stack, and how rectifiers learn.
        rectifier: its settings.
        batch_size: streams side by side.
    """

    def __init__(self, run: RunConfig, rectifier: RectifierConfig, batch_size: int) -> None:
        assert run.rectifying is not None
        torch.manual_seed(0)  # the same stack for all
        self.model = VideoPredictor(run.model.replace(rectifier=rectifier))
        stream = BouncingBalls(batch_size)
        shape = (batch_size, *stream.frame_shape)
        self._learning = RectifierLearning(self.model, without_dreams(run.rectifying), shape, Ranks())
        self._learning.set_progress(0.5)
        self.prediction, self._last, self._frame = _seen(self.model, stream)

    def update(self) -> None:
        """Take one step."""
        streams = len(self._frame)
        everywhere = torch.ones(streams, dtype=torch.bool)
        alone = torch.zeros(streams, dtype=torch.int64)
        self._learning.find_gradients(self.prediction, self._frame, everywhere, self._last, alone)
        self._learning.step()

    def memory(self) -> dict[str, int]:
        """Return bytes: kept for the gradient, of weights and of optimisers; of stages also the most that one needs."""
        rectifier = self.model.rectifier
        assert rectifier is not None
        with saved_bytes() as saved:
            self.model.rectify(self.prediction)
        weights = sum(_bytes(weight) for weight in rectifier.parameters())
        kept = sum(
            _bytes(value)
            for optimiser in self._learning.optimisers
            for state in optimiser.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )
        found = {"for_gradient": saved(), "weights": weights, "optimisers": kept}
        if isinstance(rectifier, LocalStages):
            found["for_gradient_of_a_stage"] = max(self._of_stages(rectifier))
        return found

    def _of_stages(self, rectifier: LocalStages) -> Iterator[int]:
        """Yield what each stage keeps for its gradient: what the row up to it keeps beyond the row below it."""
        below = 0
        stages = list(rectifier.row)
        for count in range(1, len(stages) + 1):
            rectifier.row = torch.nn.ModuleList(stages[:count])
            with saved_bytes() as saved:
                self.model.rectify(self.prediction)
            yield saved() - below
            below = saved()


@contextmanager
def saved_bytes() -> Iterator[Callable[[], int]]:
    """Count the memory that is kept for gradients: each piece of it once, weights left out.

    Yields:
        A function that returns the bytes.
    """
    pieces: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not (tensor.is_leaf and tensor.requires_grad):
            storage = tensor.untyped_storage()
            pieces[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or another piece could get the same address
        return tensor

    alive: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(pieces.values())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _seen(model: VideoPredictor, stream: BouncingBalls) -> tuple[Prediction, Tensor, Tensor]:
    """Return what a stack predicts after some frames, the last of these, and the frame that came."""
    state = model.initial_state((stream.batch_size, *stream.frame_shape))
    frame = next(stream).frames
    with torch.no_grad():
        for following in itertools.islice(stream, SEEN):
            last, frame = frame, following.frames
            state = model.observe(last, model.predict_raw(state), state)
        return model.predict_raw(state), last, frame


def compare(run: RunConfig, kinds: dict[str, RectifierConfig], options: argparse.Namespace) -> dict[str, Any]:
    """Return the time of an update for a frame, seconds, the ratio to the first kind, and the memory of each."""
    learners = {name: Learner(run, kind, options.batch_size) for name, kind in kinds.items()}
    clock = time.process_time if options.threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in learners}
    for turn in range(options.turns + WARM_UP):
        for name in learners if turn % 2 == 0 else reversed(learners):
            begun = clock()
            for _ in range(options.updates):
                learners[name].update()
            if turn >= WARM_UP:
                times[name].append((clock() - begun) / (options.updates * options.batch_size))
    first = times[next(iter(times))]
    rows = []
    for name, learner in learners.items():
        ratios = [a / b for a, b in zip(times[name], first, strict=True)]
        rows.append(
            {
                "name": name,
                "settings": kinds[name].model_dump(mode="json"),
                "seconds_per_frame": statistics.median(times[name]),
                "ratio": statistics.median(ratios),
                "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
                "bytes": learner.memory(),
            }
        )
    return {"rows": rows}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="balls", help="whose stack and rectifier are taken")
    parser.add_argument("--updates", type=int, default=4, help="of a turn")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    for name, low in (("updates", 1), ("turns", 2), ("batch_size", 1), ("threads", 1)):
        if getattr(options, name) < low:
            parser.error(f"--{name.replace('_', '-')} must be >= {low}; got {getattr(options, name)}")
    run = preset(options.preset)
    if not isinstance(run, RunConfig) or run.model.rectifier is None or run.rectifying is None:
        parser.error(f"--preset must be RSM with a rectifier that learns; got {options.preset!r}")
    kinds = {
        "end to end": run.model.rectifier,
        "local": LocalConfig(),
        "local, one hidden layer": LocalConfig(hidden_layers=1),
    }
    with kernels.threads_in_use(options.threads, torch_threads=options.threads):
        result = compare(run, kinds, options)
    for row in result["rows"]:
        low, high = row["ratio_quartiles"]
        print(
            f"{row['name']}: {row['seconds_per_frame'] * 1000:.2f} ms a frame, ratio {row['ratio']:.2f} "
            f"(quartiles {low:.2f} to {high:.2f}), {row['bytes']['for_gradient'] / 2**20:.1f} MiB for the gradient"
        )
    if options.json:
        settings = {name: getattr(options, name) for name in ("preset", "updates", "turns", "batch_size", "threads")}
        options.json.write_text(json.dumps(settings | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
