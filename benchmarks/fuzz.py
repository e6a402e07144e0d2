"""Call what reads input of others thousands of times with broken input, and count what comes of it.

Only a result, a ValueError or an OSError may come: any other error, or a crash of the process, is a fault. Each call
follows from the seed and its number, so that a fault can be made again with ``--first NUMBER --calls 1``.

    python benchmarks/fuzz.py --what films|arrays|pictures|observe [--calls 10000] [--seed 0] [--first 0]
"""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests" / "reference")]

from fuzz_arrays import arrays  # noqa: E402
from fuzz_films import films  # noqa: E402
from fuzz_observe import observations  # noqa: E402
from fuzz_pictures import pictures  # noqa: E402

Call = Callable[[np.random.Generator], str]
"""Makes one call with random input and returns what came of it, in a word; raises what the call raised."""


def run(call: Call, calls: int, seed: int = 0, first: int = 0) -> Counter[str]:
    """Make calls and count what came of them; ValueErrors and OSErrors are outcomes, too.

    Raises:
        RuntimeError: a call raised another error; the message has its number.
    """
    outcomes: Counter[str] = Counter()
    for number in range(first, first + calls):
        try:
            outcomes[call(np.random.default_rng((seed, number)))] += 1
        except (ValueError, OSError) as error:
            outcomes["ValueError" if isinstance(error, ValueError) else "OSError"] += 1
            if "\n" in str(error):
                raise RuntimeError(f"call {number} of seed {seed}: a message of several lines: {error}") from error
        except Exception as error:
            raise RuntimeError(f"call {number} of seed {seed}: {type(error).__name__}: {error}") from error
    return outcomes


WHAT: dict[str, Callable[[Path], Call]] = {
    "films": films,
    "arrays": arrays,
    "pictures": pictures,
    "observe": observations,
}
"""What can be called: a function that makes its input in a folder, and returns the call."""


def main() -> None:
    """Make the calls and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=WHAT, required=True)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    options = parser.parse_args()
    faulthandler.enable()
    begun = time.perf_counter()
    with TemporaryDirectory() as folder:
        outcomes = run(WHAT[options.what](Path(folder)), options.calls, options.seed, options.first)
    print(f"{options.calls} calls of {options.what}, seed {options.seed}, {time.perf_counter() - begun:.0f} s")
    for outcome, count in outcomes.most_common():
        print(f"  {count:6d}  {outcome}")


if __name__ == "__main__":
    sys.exit(main())
