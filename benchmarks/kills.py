"""Kills a training run at random moments, resumes it, and compares the end bit by bit with an undisturbed run.

python benchmarks/kills.py [--kills 500]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tests" / part) for part in ("reference", "invariants")]

import test_kill_and_resume as law  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500, help="of each phase")
    kills = parser.parse_args().kills
    for learns in law.KILLS:
        law.KILLS[learns] = kills
        with tempfile.TemporaryDirectory() as folder:
            law.test_random_kills_change_nothing(Path(folder), learns)
        print(f"{learns}: {kills} kills, every resumed run bit-identical to the undisturbed one", flush=True)


if __name__ == "__main__":
    main()
