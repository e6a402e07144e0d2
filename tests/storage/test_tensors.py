import json
import resource

import pytest
import torch
from safetensors.torch import save_file

from torchrsm.rsm.functional import Cells
from torchrsm.state import flatten, unflatten
from torchrsm.storage.tensors import load_tensors, save_tensors, write_atomically


def test_tensors_and_header_come_back(tmp_path):
    shared = torch.arange(6.0)
    tensors = {"a": shared, "b": shared, "c": torch.tensor([1, 2], dtype=torch.int32), "d": shared.view(2, 3).t()}
    save_tensors(tmp_path / "x.safetensors", tensors, {"step": 3, "share": 0.1})
    loaded, header = load_tensors(tmp_path / "x.safetensors")
    assert header == {"step": 3, "share": 0.1}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype


def test_flatten_and_unflatten_are_inverse():
    tree = (Cells(torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, 1)), None, (torch.ones(3),))
    flat = flatten("state", tree)
    assert sorted(flat) == ["state.0.index", "state.0.value", "state.2.0"]
    rebuilt = unflatten("state", tree, {name: tensor * 2 for name, tensor in flat.items()})
    assert type(rebuilt[0]) is Cells
    assert rebuilt[1] is None
    assert torch.equal(rebuilt[2][0], torch.full((3,), 2.0))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [({}, "must have s.0 as .3,. torch.float32; got nothing"), ({"s.0": torch.ones(2)}, "got .2,. torch.float32")],
)
def test_unflatten_names_what_does_not_fit(tensors, message):
    with pytest.raises(ValueError, match=message):
        unflatten("s", (torch.ones(3),), tensors)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*x.safetensors"):
        load_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("length", [0, 5, 60, -1])
def test_a_truncated_file_is_refused(tmp_path, length):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="x.safetensors is truncated or no safetensors file"):
        load_tensors(path)


def test_foreign_files_are_refused(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "pickle.safetensors")
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        load_tensors(tmp_path / "pickle.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="torchrsm did not write"):
        load_tensors(tmp_path / "foreign.safetensors")


def test_a_disk_that_fills_in_mid_save_loses_nothing(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(10)}, {"step": 1})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the kernel now refuses the file in the middle
    try:
        with pytest.raises(OSError, match="cannot write .*x.safetensors: File too large"):
            save_tensors(path, {"a": torch.ones(100_000)}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    save_tensors(path, {"a": torch.ones(100_000)}, {"step": 2})
    assert load_tensors(path)[1] == {"step": 2}


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="cannot write .*nowhere/x: No such file"):
        write_atomically(tmp_path / "nowhere" / "x", json.dumps({}).encode())
