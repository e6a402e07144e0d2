"""Rows of several seeds in a folder, and what they and others have measured in one file of results.

The folder::

    settings.json            what makes its numbers comparable
    runs/ROW-seed-N/         a training run each (`torchrsm.runs.trainer`)
    scores/ROW-seed-N.json   what a row of a seed scored

What is there is not done again. The file of results keeps what it holds of other rows and seeds, so that several
machines can share the work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torchrsm.runs.bench.folder import write_json
from torchrsm.storage.tensors import write_atomically


class SeededResults:
    """The results of rows and seeds.

    Args:
        out: the folder.
        results: the file of results, JSON.
        settings: what makes numbers comparable.

    Raises:
        SystemExit: the folder or the file holds results of other settings.
    """

    def __init__(self, out: Path, results: Path, settings: dict[str, Any]) -> None:
        self.out, self.results, self.settings = out, results, settings
        self._take_folder()
        self._others = self._other_results()

    def run_folder(self, row: str, seed: int) -> Path:
        """Return where a training run is kept."""
        return self.out / "runs" / f"{row}-seed-{seed}"

    def has(self, row: str, seed: int) -> bool:
        """Return whether the folder holds what a row scored."""
        return self._file(row, seed).is_file()

    def keep(self, row: str, seed: int, scores: str) -> None:
        """Write down what a row scored, as JSON."""
        write_atomically(self._file(row, seed), (scores + "\n").encode())

    def write(self, rows: Iterable[dict[str, Any]], summary: Callable[[int, str], dict[str, Any]], **more: Any) -> None:
        """Write the file of results.

        Args:
            rows: the entry of each row, in the order of the table; its ``name`` is that of the row. ``seeds`` is added.
            summary: from a seed and what a row scored, as JSON, to what the file holds of it.
            **more: stands beside the settings.
        """
        entries = []
        for row in rows:
            seeds = {seed: result for (name, seed), result in self._others.items() if name == row["name"]}
            for file in self.out.glob(f"scores/{row['name']}-seed-*.json"):
                seed = int(file.stem.rpartition("-")[2])
                seeds[seed] = summary(seed, file.read_text())
            if seeds:
                entries.append(row | {"seeds": [seeds[seed] for seed in sorted(seeds)]})
        write_json(self.results, self.settings | more | {"rows": entries})

    def _file(self, row: str, seed: int) -> Path:
        return self.out / "scores" / f"{row}-seed-{seed}.json"

    def _take_folder(self) -> None:
        """Make the folder, or see that it is of the same settings."""
        file = self.out / "settings.json"
        before = json.loads(file.read_text()) if file.is_file() else self.settings
        for name, now in self.settings.items():
            if before.get(name) != now:
                raise SystemExit(f"{self.out} was begun with {name} = {before.get(name)}; it cannot go on with {now}")
        for part in ("runs", "scores"):
            (self.out / part).mkdir(parents=True, exist_ok=True)
        write_json(file, self.settings)

    def _other_results(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Return what the file holds already, by row and seed."""
        if not self.results.is_file():
            return {}
        before = json.loads(self.results.read_text())
        for name, now in self.settings.items():
            if before.get(name) != now:
                raise SystemExit(
                    f"{self.results} holds results with {name} = {before.get(name)}, these are with {now}; "
                    "name another file with --json"
                )
        return {(row["name"], seed["seed"]): seed for row in before["rows"] for seed in row["seeds"]}


def names(text: str) -> list[str]:
    """Read names with commas between them."""
    return [part for part in text.split(",") if part]


def numbers(text: str) -> list[int]:
    """Read whole numbers with commas between them."""
    return [int(part) for part in names(text)]
