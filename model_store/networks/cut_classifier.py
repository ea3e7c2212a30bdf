"""A classifier of another library, cut before its last linear layer."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model_store.networks.output import NetworkOutput

_BODY, _HEAD = "body.", "head."


class CutClassifier(nn.Module):
    """A network cut before its last linear layer, which then runs in float32."""

    def __init__(self, name: str, body: nn.Module, path: str) -> None:
        """Cut `body`, which is changed.

        Args:
            name: the library's, for messages.
            body: maps normalised images float (N, 3, H, W) to logits (N, K), its last layer last.
            path: of that layer in it.

        Raises:
            ValueError: the layer is not linear.
        """
        super().__init__()
        head = body.get_submodule(path)
        if not isinstance(head, nn.Linear):
            raise ValueError(
                f"{name} ends in {type(head).__name__}; only networks that end in Linear have an energy here"
            )
        body.set_submodule(path, nn.Identity())
        self.name, self.path = name, path
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> NetworkOutput:
        """Classify normalised images float (N, 3, H, W).

        Raises:
            ValueError: the network asserts another size of image, as vision transformers do, or its last layer is no
                classifier of one vector an image.
        """
        try:
            features = self.body(x).float()
        except AssertionError as err:
            raise ValueError(f"{self.name} takes no images of {x.shape[2]} x {x.shape[3]} pixels: {err}") from err
        if features.ndim != 2:
            raise ValueError(
                f"{self.name} classifies before it pools: features are {tuple(features.shape)}, not (N, D)"
            )
        with torch.autocast(x.device.type, enabled=False):
            return NetworkOutput(logits=self.head(features), features=features)

    def by_own_names(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights that go by the library's names by the names of `state_dict` here; those pass as they are."""
        if all(key.startswith((_BODY, _HEAD)) for key in weights) and any(key.startswith(_BODY) for key in weights):
            return dict(weights)
        last = f"{self.path}."
        return {
            _HEAD + key.removeprefix(last) if key.startswith(last) else _BODY + key: value
            for key, value in weights.items()
        }
