"""WideResNet (Zagoruyko & Komodakis, 2016), as trained by Liu et al. 2020."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_store.networks.output import NetworkOutput

STAGE_STRIDES = (1, 2, 2)


class PreActivationBlock(nn.Module):
    """BN, ReLU, conv3x3, BN, ReLU, dropout, conv3x3, plus the shortcut.

    Where the width changes, the 1x1 shortcut takes the activated input; elsewhere the raw input is added.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.dropout = dropout
        same = channels_in == channels_out and stride == 1
        self.shortcut = None if same else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        activated = F.relu(self.bn1(x))
        residual = F.relu(self.bn2(self.conv1(activated)))
        residual = F.dropout(residual, self.dropout, self.training)
        residual = self.conv2(residual)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        added: Tensor = shortcut + residual
        return added


class WideResNet(nn.Module):
    """WRN-depth-widen_factor: a 3x3 stem, three stages of (depth - 4) / 6 blocks, global average pool, linear head.

    WRN-40-2 has 2,243,546 parameters for 10 classes and 2,255,156 for 100.
    """

    def __init__(self, depth: int, widen_factor: int, dropout: float, num_classes: int) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth is {depth}; a WideResNet has 6 n + 4 layers: 10, 16, 22, 28, 34, 40, ...")
        blocks_per_stage = (depth - 4) // 6
        widths = (16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor)
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.stages = nn.Sequential(
            *(
                PreActivationBlock(
                    channels_in=widths[stage] if block == 0 else widths[stage + 1],
                    channels_out=widths[stage + 1],
                    stride=stride if block == 0 else 1,
                    dropout=dropout,
                )
                for stage, stride in enumerate(STAGE_STRIDES)
                for block in range(blocks_per_stage)
            )
        )
        self.bn = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> NetworkOutput:
        """Classify normalised images float (N, 3, H, W); the head runs in float32 also under autocast."""
        x = F.relu(self.bn(self.stages(self.stem(x))))
        features = x.mean(dim=(2, 3), dtype=torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return NetworkOutput(logits=self.head(features), features=features)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
