from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quartet.models.image import SmallResNet, TorchvisionClassifier

B, C = 16, 10
VALUES = {"weights": None, "small_stem": "auto", "dropout": 0.0, "channels_last": True}
COMPACT = {"widths": [8, 16, 32], "dropout": 0.0, "logit_scale": 0.125, "channels_last": True}
# one small member of each family of first or last layer, with a picture size that it can read
FAMILIES = [
    ("resnet18", 8, 1),
    ("resnet18", 32, 3),
    ("regnet_x_400mf", 32, 1),
    ("densenet121", 32, 1),
    ("mobilenet_v2", 32, 3),
    ("mobilenet_v3_small", 32, 1),
    ("efficientnet_b0", 32, 1),
    ("shufflenet_v2_x0_5", 32, 1),
    ("googlenet", 32, 1),
    ("alexnet", 64, 1),
    ("convnext_tiny", 32, 1),
    ("swin_t", 32, 1),
]


def make(name: str = "resnet18", image_size: int = 8, in_channels: int = 1, **changes) -> TorchvisionClassifier:
    sizes = {"in_channels": in_channels, "image_size": image_size, "n_classes": C}
    return TorchvisionClassifier(**sizes, name=name, **{**VALUES, **changes})


def compact(image_size: int = 8, in_channels: int = 1, **changes) -> SmallResNet:
    return SmallResNet(in_channels=in_channels, image_size=image_size, n_classes=C, **{**COMPACT, **changes})


def check_start(network: nn.Module, image: torch.Tensor, without_gradient) -> None:
    """Loss about ln(classes), logits of both signs, every parameter receives a gradient."""
    logits = network(image)
    loss = F.cross_entropy(logits, torch.arange(len(image)) % C)
    assert logits.shape == (len(image), C) and logits.min() < 0 < logits.max()
    assert abs(loss.item() - math.log(C)) < 0.3
    assert without_gradient(network, loss) == []


@pytest.mark.parametrize(("name", "image_size", "in_channels"), FAMILIES)
def test_start_of_torchvision_families(name, image_size, in_channels, parameters_without_gradient):
    network = make(name, image_size, in_channels)
    check_start(network, torch.randn(B, in_channels, image_size, image_size), parameters_without_gradient)


@pytest.mark.parametrize(("name", "image_size"), [(name, size) for name, size, channels in FAMILIES if channels == 1])
def test_the_head_is_the_last_layer_of_every_family(name, image_size):
    network = make(name, image_size)
    names = [key for key, _ in network.named_parameters()]
    of_head = {id(p) for p in network.head.parameters()}
    assert [key for key, p in network.named_parameters() if id(p) in of_head] == names[-len(of_head) :]
    assert all(p.shape[0] == C for p in network.head.parameters())


@pytest.mark.parametrize("image_size", [8, 15, 32])
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("widths", [[8], [8, 16, 32], [4, 4, 4, 4, 4]])
def test_start_of_the_compact_network(image_size, in_channels, widths, parameters_without_gradient):
    network = compact(image_size, in_channels, widths=widths)
    check_start(network, torch.randn(B, in_channels, image_size, image_size), parameters_without_gradient)


@pytest.mark.parametrize(
    ("image_size", "small_stem", "weights", "side"),
    [
        (8, "auto", None, 3),
        (65, "auto", None, 7),
        (8, False, None, 7),
        (65, True, None, 3),
        (8, "auto", "DEFAULT", 7),
        (8, True, "DEFAULT", 3),
    ],
)
def test_small_pictures_meet_a_small_stem(image_size, small_stem, weights, side):
    network = make(image_size=image_size, small_stem=small_stem, weights=weights)
    assert network.get_parameter("backbone.conv1.weight").shape == (64, 1, side, side)


def test_one_channel_reads_like_grey_colour():
    torch.manual_seed(0)
    colour = make(in_channels=3).eval()
    torch.manual_seed(0)
    grey = make(in_channels=1).eval()
    picture = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(grey(picture), colour(picture.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0"])
def test_dropout_stands_before_the_head_of_every_family(name):
    probabilities = [m.p for m in make(name, 32, dropout=0.3).modules() if isinstance(m, nn.Dropout)]
    assert sorted(probabilities)[-1] == 0.3 and sum(probabilities) == 0.3


def test_dropout_acts_in_training_only_and_keeps_the_keys():
    for build in (make, compact):
        network, picture = build(dropout=0.5), torch.randn(B, 1, 8, 8)
        assert not torch.equal(network(picture), network(picture))
        network.eval()
        assert torch.equal(network(picture), network(picture))
        assert list(network.state_dict()) == list(build().state_dict())


def test_a_fresh_network_is_in_training_mode_with_fresh_statistics():
    network = make()
    assert all(module.training for module in network.modules())
    assert all(x.item() == 0 for name, x in network.named_buffers() if name.endswith("num_batches_tracked"))


@pytest.mark.parametrize("build", [make, compact])
def test_memory_format_does_not_change_the_logits(build):
    first, second = build(channels_last=True).eval(), build(channels_last=False).eval()
    second.load_state_dict(first.state_dict())
    picture = torch.randn(B, 1, 8, 8)
    torch.testing.assert_close(first(picture), second(picture), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [make, compact])
def test_compiling_keeps_keys_and_outputs(build, assert_compiles):
    assert_compiles(build(), torch.randn(2, 1, 8, 8))


def test_conf_values_fit_the_constructors(conf_values):
    for network, name in ((TorchvisionClassifier, "image"), (SmallResNet, "image_small")):
        values = conf_values(name)
        assert network.problems(values) == []
        built = network(in_channels=1, image_size=8, n_classes=C, **values)
        assert built(torch.randn(2, 1, 8, 8)).shape == (2, C)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet_18"}, "model.name=resnet_18 is not a torchvision classifier; the nearest are resnet18"),
        ({"small_stem": "yes"}, "model.small_stem must be true or false or auto, not 'yes'"),
        ({"name": "vgg11", "small_stem": True}, "model.small_stem=true is for the ResNet family, not vgg11"),
        ({"dropout": 1}, "model.dropout must be a probability: at least 0 and below 1, not 1"),
        (
            {"weights": "BEST"},
            "model.weights=BEST is unknown: resnet18 has IMAGENET1K_V1, DEFAULT; or name a .pth file",
        ),
        ({"name": "nothing", "dropout": 1}, r"model.dropout must be .*\nmodel.name"),
        ({"name": "densenet121"}, "model.name=densenet121 cannot work on images of 8×8 pixels"),
        ({"name": "vit_b_16", "image_size": 24}, "model.name=vit_b_16 cannot work on images of 24×24 pixels"),
    ],
)
def test_mistakes_with_torchvision_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": []}, r"model.widths is empty"),
        ({"widths": [8, 0]}, r"model.widths must be a list, each item an integer of at least 1, not \[8, 0\]"),
        ({"dropout": 1}, "model.dropout must be a probability: at least 0 and below 1, not 1"),
        ({"image_size": 4}, "4×4 pixels"),
    ],
)
def test_mistakes_with_the_compact_network_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        compact(**changes)


@pytest.mark.parametrize(
    "settings", [{}, {"name": 3, "weights": 3, "small_stem": None, "dropout": "0", "widths": "wide"}]
)
def test_missing_keys_and_wrong_types_are_left_to_others(settings):
    assert TorchvisionClassifier.problems(settings) == SmallResNet.problems(settings) == []
