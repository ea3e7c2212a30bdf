import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model_store.manifest import OnnxSpec, PreprocessSpec, TimmSpec, TorchvisionSpec, WideResNetSpec
from model_store.networks import NormalisedNetwork, build_network, outlined
from model_store.networks.cut_classifier import CutClassifier


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("num_classes", "parameters"), [(10, 2_243_546), (100, 2_255_156)])
def test_wrn_40_2_has_the_papers_parameter_count(num_classes: int, parameters: int) -> None:
    assert _parameters(build_network(WideResNetSpec(depth=40, widen_factor=2, num_classes=num_classes))) == parameters


@pytest.mark.parametrize("depth", [11, 12, 18, 39])
def test_depth_that_is_no_wide_resnet_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth is {depth}"):
        build_network(WideResNetSpec(depth=depth, widen_factor=1, num_classes=2))


def test_head_is_linear_in_the_features_and_float32_under_autocast() -> None:
    network = build_network(WideResNetSpec(depth=10, widen_factor=1, num_classes=10)).eval()
    with torch.autocast("cpu", torch.bfloat16):
        output = network(torch.randn(4, 3, 32, 32))
    assert output.logits.dtype == output.features.dtype == torch.float32
    assert output.features.shape == (4, 64)
    torch.testing.assert_close(output.logits, F.linear(output.features, network.head.weight, network.head.bias))


def test_convolutions_run_in_bfloat16_under_autocast() -> None:
    network = build_network(WideResNetSpec(depth=10, widen_factor=1, num_classes=10)).eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = network(images).features
    assert not torch.equal(narrow, network(images).features)


def test_block_is_the_papers() -> None:
    """Where the width changes the shortcut convolves the activated input; elsewhere it is the raw input."""
    network = build_network(WideResNetSpec(depth=16, widen_factor=2, num_classes=10)).eval()
    wider, same = network.stages[0], network.stages[1]
    x = torch.randn(2, 16, 8, 8)
    activated = F.relu(wider.bn1(x))
    expected = wider.conv2(F.relu(wider.bn2(wider.conv1(activated)))) + wider.shortcut(activated)
    torch.testing.assert_close(wider(x), expected)
    y = torch.randn(2, 32, 8, 8)
    torch.testing.assert_close(same(y), y + same.conv2(F.relu(same.bn2(same.conv1(F.relu(same.bn1(y)))))))
    assert same.shortcut is None


def test_stages_halve_the_resolution_twice() -> None:
    network = build_network(WideResNetSpec(depth=16, widen_factor=2, num_classes=10)).eval()
    assert network.stages(network.stem(torch.randn(1, 3, 32, 32))).shape == (1, 128, 8, 8)


def test_initialisation_follows_fan_out() -> None:
    torch.manual_seed(0)
    network = build_network(WideResNetSpec(depth=16, widen_factor=8, num_classes=10))
    conv = network.stages[-1].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    assert torch.equal(network.head.bias, torch.zeros(10))


def test_dropout_is_the_recipes_and_off_when_evaluated() -> None:
    network = build_network(WideResNetSpec(depth=10, widen_factor=1, dropout=0.3, num_classes=10))
    images = torch.randn(8, 3, 32, 32)
    network.train()
    assert not torch.equal(network(images).features, network(images).features)
    network.eval()
    assert torch.equal(network(images).features, network(images).features)


def test_pixels_are_normalised_with_the_specs_mean_and_std(preprocess: PreprocessSpec) -> None:
    class Echo(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    pixels = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8)
    found = NormalisedNetwork(Echo(), preprocess)(pixels)
    expected = [(0 / 255 - 0.49) / 0.25, (128 / 255 - 0.48) / 0.24, (255 / 255 - 0.45) / 0.26]
    assert found.shape == (1, 3, 1, 1)
    torch.testing.assert_close(found.flatten(), torch.tensor(expected))


def test_torchvision_network_is_cut_before_its_head() -> None:
    import torchvision.models

    torch.manual_seed(0)
    network = build_network(TorchvisionSpec(name="resnet18", num_classes=7)).eval()
    whole = torchvision.models.resnet18(num_classes=7).eval()
    whole.load_state_dict(
        {key.removeprefix("body."): value for key, value in network.state_dict().items() if "head" not in key}
        | {"fc.weight": network.head.weight, "fc.bias": network.head.bias}
    )
    images = torch.randn(2, 3, 64, 64)
    output = network(images)
    torch.testing.assert_close(output.logits, whole(images))
    assert output.features.shape == (2, 512)


def test_torchvision_network_of_another_size_of_image_says_so() -> None:
    with torch.device("meta"):  # of 88 million parameters none is needed
        network, images = build_network(TorchvisionSpec(name="vit_b_32", num_classes=2)), torch.zeros(1, 3, 32, 64)
    with pytest.raises(ValueError, match=r"^vit_b_32 takes no images of 32 x 64 pixels: .*Expected 224 but got 32"):
        network(images)


@pytest.mark.parametrize("name", ["resnet1018", "fasterrcnn_resnet50_fpn"])
def test_unknown_torchvision_network_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        build_network(TorchvisionSpec(name=name, num_classes=7))


def test_network_of_a_library_says_what_to_install_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for library, spec in (("torchvision", TorchvisionSpec), ("timm", TimmSpec)):
        monkeypatch.setitem(sys.modules, library, None)
        monkeypatch.delitem(sys.modules, f"model_store.networks.{library}_classifier", raising=False)
        with pytest.raises(ValueError, match=rf"resnet18 .* no {library} here; pip install 'energy-ood\[{library}\]'"):
            build_network(spec(name="resnet18", num_classes=7))


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "test_vit"])
def test_timm_network_is_cut_before_its_head(name: str) -> None:
    import timm

    torch.manual_seed(0)
    size = timm.get_pretrained_cfg(name).input_size[1]
    whole, images = timm.create_model(name, num_classes=7).eval(), torch.randn(2, 3, size, size)
    network = build_network(TimmSpec(name=name, num_classes=7)).eval()
    assert isinstance(network, CutClassifier)
    network.load_state_dict(network.by_own_names(whole.state_dict()))
    output = network(images)
    torch.testing.assert_close(output.logits, whole(images))
    torch.testing.assert_close(output.features, whole.forward_head(whole.forward_features(images), pre_logits=True))


@pytest.mark.parametrize(
    "spec", [TimmSpec(name="test_vit", num_classes=7), TorchvisionSpec(name="resnet18", num_classes=7)]
)
def test_weights_by_own_names_stay_as_they_are(spec: TimmSpec) -> None:
    own = outlined(spec).state_dict()
    assert outlined(spec).by_own_names(own).keys() == own.keys()
    assert {"head.weight", "head.bias"} < own.keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet1018", "timm has no classifier 'resnet1018'"),
        ("hf-hub:someone/something", "timm has no classifier"),
        ("resnet18.unheard_of", "timm has no classifier 'resnet18.unheard_of': .*tag"),
        (
            "deit_tiny_distilled_patch16_224",
            r"ends in the layers \('head', 'head_dist'\); only networks that end in one",
        ),
        ("resnetv2_18", "ends in Conv2d; only networks that end in Linear"),
    ],
)
def test_timm_network_without_one_linear_head_is_refused(name: str, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_network(TimmSpec(name=name, num_classes=7))


def test_network_that_classifies_before_it_pools_is_refused() -> None:
    class PerToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.flatten(2))

    with pytest.raises(
        ValueError, match=r"per_token classifies before it pools: features are \(1, 3, 4\), not \(N, D\)"
    ):
        CutClassifier("per_token", PerToken(), "fc")(torch.zeros(1, 3, 2, 2))


def test_onnx_network_says_that_it_does_not_compute_in_bfloat16() -> None:
    network = build_network(OnnxSpec(graph_bytes=3, features=2, num_classes=2))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="bfloat16 openvino alone"):
        network(torch.zeros(1, 3, 2, 2))


def test_onnx_network_says_what_to_install_and_what_it_cannot_load(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network(OnnxSpec(graph_bytes=3, features=2, num_classes=2))
    with pytest.raises(RuntimeError, match="onnxruntime cannot load the graph"):
        network(torch.zeros(1, 3, 2, 2))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install 'energy-ood\[onnx\]'"):
        network(torch.zeros(1, 3, 2, 2))
