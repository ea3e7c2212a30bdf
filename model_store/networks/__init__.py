"""Networks: from a spec to an untrained module, and from uint8 pixels to logits."""

from model_store.networks.normalised import NormalisedNetwork
from model_store.networks.output import NetworkOutput
from model_store.networks.registry import build_network, outlined

__all__ = ["NetworkOutput", "NormalisedNetwork", "build_network", "outlined"]
