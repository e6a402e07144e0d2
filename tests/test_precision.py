import pytest
import torch

from torchrsm.precision import check_precision, fixed_sums, layers_of, precision, products, products_in
from torchrsm.rectifiers.parts import Convolution

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MATMUL, CONVOLUTION = torch.backends.cuda.matmul, torch.backends.cudnn


def flags():
    places = (MATMUL, CONVOLUTION.conv, CONVOLUTION.rnn, torch.backends.mkldnn.matmul)
    return [place.fp32_precision for place in places]


def test_float32_unless_somebody_says_otherwise():
    assert precision() == "float32"
    assert products(CPU) == products(CUDA) == "float32"


def test_auto_depends_on_the_device():
    with products_in("auto"):
        assert precision() == "auto"
        assert products(CUDA) == products(torch.device("cuda", 1)) == "tf32"
        assert products(CPU) == ("bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32")
        assert products(torch.device("mps")) == "float32"


@pytest.mark.parametrize(("setting", "kind"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_layers_compute_in_the_precision_and_what_they_return_keeps_its_type(setting, kind):
    layer, x, seen = Convolution(2, 3, 3, padding=1), torch.rand(1, 2, 5, 5), []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(torch.is_autocast_enabled("cpu")))
    exact = layer(x)
    with products_in(setting), layers_of(CPU):
        found = layer(x)
    assert seen == [False, kind == torch.bfloat16]
    assert found.dtype == torch.float32
    rounded = torch.nn.functional.conv2d(x.to(kind), layer.weight.to(kind), layer.bias.to(kind), padding=1).float()
    assert torch.equal(found, rounded)
    assert (found - exact).abs().max() < 0.02


@pytest.mark.parametrize(
    ("setting", "allowed"), [("float32", False), ("tf32", True), ("bfloat16", True), ("auto", True)]
)
def test_torch_follows(setting, allowed):
    before = flags(), MATMUL.allow_tf32, CONVOLUTION.allow_tf32
    with products_in(setting):
        assert MATMUL.allow_tf32 is allowed
        assert CONVOLUTION.allow_tf32 is allowed
    assert (flags(), MATMUL.allow_tf32, CONVOLUTION.allow_tf32) == before


def test_blocks_within_blocks_and_errors_put_it_back():
    before = flags()
    with products_in("bfloat16"):
        with products_in("float32"):
            assert precision() == "float32"
            assert not MATMUL.allow_tf32
        assert MATMUL.allow_tf32
        with pytest.raises(ZeroDivisionError), products_in("float32"):
            1 / 0  # noqa: B018  # any error
        assert precision() == "bfloat16"
        assert MATMUL.allow_tf32
    assert precision() == "float32"
    assert flags() == before


def test_fixed_sums_keep_the_precision_and_put_torch_back():
    before = CONVOLUTION.deterministic, CONVOLUTION.benchmark, flags()
    try:
        CONVOLUTION.benchmark = True
        with products_in("tf32"), fixed_sums():
            assert (CONVOLUTION.deterministic, CONVOLUTION.benchmark) == (True, False)
            assert CONVOLUTION.allow_tf32
            assert precision() == "tf32"
        with fixed_sums():
            assert not CONVOLUTION.allow_tf32  # which is torch's own default
        with pytest.raises(ZeroDivisionError), fixed_sums():
            1 / 0  # noqa: B018  # any error
        assert (CONVOLUTION.deterministic, CONVOLUTION.benchmark) == (before[0], True)
    finally:
        CONVOLUTION.benchmark = before[1]
    assert (CONVOLUTION.deterministic, CONVOLUTION.benchmark, flags()) == before


@pytest.mark.parametrize("set_before", ["highest", "high", "medium"])
def test_what_a_user_has_set_comes_back(set_before):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(set_before)
        own = flags()
        with products_in("tf32"):
            pass
        assert torch.get_float32_matmul_precision() == set_before
        assert flags() == own
    finally:
        torch.set_float32_matmul_precision(before)


def test_what_a_user_has_set_by_the_newer_names_comes_back():
    before = flags()
    try:
        MATMUL.fp32_precision = "tf32"
        CONVOLUTION.conv.fp32_precision = "ieee"
        own = flags()
        with products_in("float32"):
            assert MATMUL.fp32_precision == "ieee"
        assert flags() == own
    finally:
        MATMUL.fp32_precision, CONVOLUTION.conv.fp32_precision = before[:2]
    assert flags() == before


def test_refuses():
    with pytest.raises(ValueError, match="precision must be one of auto, float32, tf32, bfloat16; got 'half'"):
        products_in("half").__enter__()
    with pytest.raises(ValueError, match="precision must be one of auto, float32, tf32, bfloat16; got 'half'"):
        check_precision("half", CPU)
    with pytest.raises(ValueError, match="precision must be auto, float32 or bfloat16 on cpu; got 'tf32'"):
        check_precision("tf32", CPU)
    for name in ("auto", "float32", "bfloat16"):
        check_precision(name, CPU)
    assert precision() == "float32"


def test_a_gpu_without_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    with pytest.raises(ValueError, match="precision must be auto, float32 or tf32 on a GPU, which has no bfloat16"):
        check_precision("bfloat16", CUDA)
    check_precision("tf32", CUDA)
