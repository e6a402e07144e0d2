"""Trains systems for the same time on the same cores, scores them alike, and writes one table."""

from torchrsm.runs.bench.bench import RESULTS_FILE, SYSTEMS, TABLE_FILE, Bench, BenchConfig
from torchrsm.runs.bench.measuring import peak_mebibytes, prediction_speeds
from torchrsm.runs.bench.results import PUBLISHED, Results, Row, Seed, draw, read_results, table, verdict

__all__ = [
    "PUBLISHED",
    "RESULTS_FILE",
    "SYSTEMS",
    "TABLE_FILE",
    "Bench",
    "BenchConfig",
    "Results",
    "Row",
    "Seed",
    "draw",
    "peak_mebibytes",
    "prediction_speeds",
    "read_results",
    "table",
    "verdict",
]
