"""Peak memory of training after 1,000 and after 100,000 frames, and at several sequence lengths.

Each row is a process of its own; the figure is the operating system's peak of its resident memory.

    python benchmarks/memory.py [--preset balls] [--frames 1000 100000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import resource, sys
from torchrsm import Trainer, preset
name, steps, length, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
run = preset(name)
training = run.training.replace(steps=steps, minutes=None, checkpoint_seconds=1.0)
run = run.replace(training=training, **{"stream.sequence_length": length})
Trainer(run, folder).run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_mebibytes(preset_name: str, steps: int, sequence_length: int) -> float:
    """Train in a process of its own and return its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", CHILD, preset_name, str(steps), str(sequence_length), f"{folder}/run"]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="balls")
    parser.add_argument("--frames", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--lengths", type=int, nargs="+", default=[20, 100, 1_000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from torchrsm import preset

    batch = preset(options.preset).training.batch_size
    rows = [(frames, 100) for frames in options.frames] + [(options.frames[0], length) for length in options.lengths]
    result = []
    for frames, length in rows:
        peak = peak_mebibytes(options.preset, -(-frames // batch), length)
        result.append({"frames": frames, "sequence_length": length, "peak_mebibytes": peak})
        print(f"{options.preset}: {frames:>7,} frames, sequences of {length:>5,}: {peak:7.1f} MiB", flush=True)
    peaks = [row["peak_mebibytes"] for row in result]
    print(f"largest over smallest: {max(peaks) / min(peaks):.4f}")
    if options.json:
        options.json.write_text(json.dumps({"preset": options.preset, "rows": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
