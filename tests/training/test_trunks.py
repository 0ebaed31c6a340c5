"""Trunks by name."""

import sys

import pytest
import torch
from torch import nn

from spml_fast.training.trunks import make_trunk, small_cnn


@pytest.mark.parametrize("size", [8, 9, 32])
@pytest.mark.parametrize(("channels", "width"), [(1, 8), (3, 16), (5, 32)])
def test_small_cnn_has_four_times_width_features(channels, width, size):
    trunk = small_cnn(channels, width)
    assert trunk(torch.randn(3, channels, size, size)).shape == (3, 4 * width)


def test_small_cnn_takes_non_square_images():
    assert small_cnn(1, 8)(torch.randn(2, 1, 5, 17)).shape == (2, 32)


def test_small_cnn_has_defaults():
    assert small_cnn()(torch.zeros(1, 3, 32, 32)).shape == (1, 128)


def test_rows_of_a_batch_do_not_depend_on_each_other():
    """So that half batches in two processes learn what the whole one teaches."""
    trunk, x = small_cnn(1, 8, dropout=0.0).train(), torch.randn(6, 1, 8, 8)
    torch.testing.assert_close(trunk(x)[:2], trunk(x[:2]), rtol=0, atol=1e-6)


def test_dropout_drops_in_training_only():
    trunk, x = small_cnn(1, 8, dropout=0.9), torch.randn(2, 1, 8, 8)
    assert (trunk.train()(x) == 0).sum() > (trunk.eval()(x) == 0).sum()
    assert torch.equal(trunk(x), trunk(x))


def test_every_parameter_of_small_cnn_learns():
    trunk = small_cnn(1, 8)
    trunk(torch.randn(4, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trunk.parameters())


# --- by name --------------------------------------------------------------------------------------


def test_a_name_alone():
    assert make_trunk("small_cnn")(torch.zeros(1, 3, 8, 8)).shape == (1, 128)


def test_a_mapping_with_options():
    spec = {"name": "small_cnn", "channels": 1, "width": 8, "dropout": 0.5}
    trunk = make_trunk(spec)
    assert trunk(torch.zeros(1, 1, 8, 8)).shape == (1, 32)
    assert next(m for m in trunk if isinstance(m, nn.Dropout)).p == 0.5
    assert spec["name"] == "small_cnn"  # the configuration stays as it is


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    package = tmp_path / "my_package_of_trunks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(
        "from torch import nn\n\n\ndef flat(width=3):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width))\n\n\nnot_a_function = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_package_of_trunks.nets"
    for name in ("my_package_of_trunks.nets", "my_package_of_trunks"):
        sys.modules.pop(name, None)


def test_a_function_of_ones_own(own_module):
    assert make_trunk(f"{own_module}:flat")(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert make_trunk({"name": f"{own_module}:flat", "width": 7})(torch.zeros(2, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    "name",
    [
        "{}:flatt",
        "{}:",
        "{}x:flat",
        "no_such_package_anywhere:flat",
        pytest.param(":flat"),
        pytest.param(".nets:flat"),
    ],
)
def test_what_cannot_be_imported_is_named(own_module, name):
    name = name.format(own_module)
    with pytest.raises(ValueError, match=name):
        make_trunk(name)


@pytest.mark.parametrize("spec", [{"channels": 3}, {"name": 3}, {"name": None}, {}])
def test_a_mapping_without_a_name_is_refused(spec):
    with pytest.raises(ValueError, match="trunk must be a name, or a mapping with 'name'"):
        make_trunk(spec)


def test_an_option_that_small_cnn_has_not():
    with pytest.raises(TypeError, match="chanels"):
        make_trunk({"name": "small_cnn", "chanels": 1})


def test_without_torchvision_the_error_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ValueError, match=r"'resnet18'.*torchvision.*not installed"):
        make_trunk("resnet18")
    assert isinstance(make_trunk("small_cnn"), nn.Module)


def test_a_name_that_there_is_not():
    pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match="'resnet_18' is not"):
        make_trunk("resnet_18")


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("mobilenet_v3_small", 576), ("vit_b_16", 768)])
def test_models_of_torchvision_lose_their_last_layer(name, width):
    pytest.importorskip("torchvision")
    size = 224 if name.startswith("vit") else 64
    trunk = make_trunk(name).eval()
    assert trunk(torch.zeros(1, 3, size, size)).shape == (1, width)
