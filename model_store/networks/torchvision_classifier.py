"""Any classifier of torchvision that ends in a linear layer."""

import torch
from torch import Tensor, nn
from torchvision import models

from model_store.networks.output import NetworkOutput


class TorchvisionClassifier(nn.Module):
    """A torchvision network cut before its last linear layer, which then runs in float32."""

    def __init__(self, name: str, num_classes: int) -> None:
        super().__init__()
        if name not in models.list_models(models):
            raise ValueError(f"torchvision.models has no classifier {name!r}")
        self.name = name
        self.body = models.get_model(name, weights=None, num_classes=num_classes)
        path, self.head = _last_linear(self.body, name)
        self.body.set_submodule(path, nn.Identity())

    def forward(self, x: Tensor) -> NetworkOutput:
        """Classify normalised images float (N, 3, H, W).

        Raises:
            ValueError: the network asserts another size of image, as vision transformers do.
        """
        try:
            features = self.body(x).float()
        except AssertionError as err:
            raise ValueError(f"{self.name} takes no images of {x.shape[2]} x {x.shape[3]} pixels: {err}") from err
        with torch.autocast(x.device.type, enabled=False):
            return NetworkOutput(logits=self.head(features), features=features)


def _last_linear(body: nn.Module, name: str) -> tuple[str, nn.Linear]:
    path, module = list(body.named_modules())[-1]
    if not isinstance(module, nn.Linear):
        raise ValueError(
            f"{name} ends in {type(module).__name__}; only networks that end in Linear have an energy here"
        )
    return path, module
