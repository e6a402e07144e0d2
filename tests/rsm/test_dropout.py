"""What is dropped in training: a share of what a layer hears of itself and of the layer above (line 3)."""

import math

import pytest
import torch

from torchrsm.rsm.functional import Cells, Grid, empty_cells
from torchrsm.rsm.layer import LayerConfig, RSMLayer

BATCH, GRID, CELLS = 8, Grid(12, 12), 6


def deaf_layer(engine, dropout):
    """A layer that hears one source alone: each cell is driven by the cell of the same number, at weight 1."""
    torch.manual_seed(0)
    settings = {"stride": 1, "normalisation": "none", "inhibition_decay": None, "output_bias": "channel"}
    config = LayerConfig(groups=CELLS, active_groups=1, dropout=dropout, **settings)
    layer = RSMLayer(config, 1, cells_above=CELLS, engine=engine)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.feedback.copy_(torch.eye(CELLS))
        layer.recurrent.copy_(torch.eye(CELLS))
    return layer


def one_cell_each():
    """Cell 2 fires at each location, with the value 1."""
    shape = (BATCH, *GRID, 1)
    return Cells(torch.full(shape, 2, dtype=torch.int32), torch.ones(shape))


def heard(layer, source):
    """Return the drive of the winner of each location, which is what arrives of the source."""
    state = layer.initial_state(BATCH, torch.zeros(BATCH, *GRID, 1))
    feedback = empty_cells(BATCH, GRID, 1)
    if source == "feedback":
        feedback = one_cell_each()
    else:
        state = state._replace(cells=one_cell_each())
    return torch.atanh(layer.predict(state, feedback).cells.value.double())


@pytest.mark.parametrize("source", ["feedback", "recurrent"])
@pytest.mark.parametrize("dropout", [0.25, 0.5])
def test_a_share_of_what_is_heard_is_dropped_in_training(engine, source, dropout):
    layer = deaf_layer(engine, dropout).train()
    torch.manual_seed(1)
    drive = heard(layer, source).flatten()
    kept = 1 / (1 - dropout)  # what is kept makes up for what is not
    assert set(drive.mul(100).round().int().tolist()) == {0, round(100 * kept)}
    share = (drive == 0).double().mean().item()
    assert share == pytest.approx(dropout, abs=4 * math.sqrt(dropout * (1 - dropout) / drive.numel()))
    assert not torch.equal(heard(layer, source).flatten(), drive)  # others are dropped at the next step


@pytest.mark.parametrize("source", ["feedback", "recurrent"])
def test_nothing_is_dropped_in_evaluation(engine, source):
    drive = heard(deaf_layer(engine, 0.5).eval(), source)
    torch.testing.assert_close(drive, torch.ones_like(drive), rtol=0, atol=1e-5)
