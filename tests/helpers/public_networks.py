"""Networks under the tensor names of public CIFAR code, written from the papers: an independent reference."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResNetBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class PreActBlock(nn.Module):
    """conv2(relu(bn2(conv1(a)))) + shortcut, a = relu(bn1(x)); the shortcut is a convolution of a, or x itself."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(x))
        kept = self.shortcut(a) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(a)))) + kept


def _stages(block: type[nn.Module], width: int, counts: tuple[int, ...]) -> dict[str, nn.Module]:
    made, inputs = {}, width
    for number, count in enumerate(counts, start=1):
        outputs, blocks = width * 2 ** (number - 1), []
        for place in range(count):
            blocks.append(block(inputs, outputs, 2 if number > 1 and place == 0 else 1))
            inputs = outputs
        made[f"layer{number}"] = nn.Sequential(*blocks)
    return made


class CifarResNet(nn.Module):
    def __init__(
        self, width: int = 4, channels: int = 1, classes: int = 10, counts: tuple[int, ...] = (2, 2, 2, 2)
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for name, stage in _stages(ResNetBlock, width, counts).items():
            self.add_module(name, stage)
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))


class PreActResNet(nn.Module):
    def __init__(self, width: int = 4, channels: int = 1, classes: int = 10, tail: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        for name, stage in _stages(PreActBlock, width, (2, 2, 2, 2)).items():
            self.add_module(name, stage)
        self.bn = nn.BatchNorm2d(8 * width) if tail else nn.Identity()
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.linear(F.relu(self.bn(x)).mean((2, 3)))


class WideBlock(nn.Module):
    """As `PreActBlock`, with the shortcut's convolution under another name; equal widths keep x."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.equal = inputs == outputs
        self.convShortcut = None if self.equal else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(x))
        return self.conv2(F.relu(self.bn2(self.conv1(a)))) + (x if self.equal else self.convShortcut(a))


class WideStage(nn.Module):
    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = [WideBlock(inputs, outputs, stride)]
        self.layer = nn.Sequential(*first, *(WideBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """`unused`: with the stage that one public release has and never runs."""

    def __init__(
        self, depth: int = 10, factor: int = 1, channels: int = 1, classes: int = 10, unused: bool = False
    ) -> None:
        super().__init__()
        blocks, widths = (depth - 4) // 6, [16, 16 * factor, 32 * factor, 64 * factor]
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = WideStage(blocks, widths[0], widths[1], 1)
        if unused:
            self.sub_block1 = WideStage(blocks, widths[0], widths[1], 1)
        self.block2 = WideStage(blocks, widths[1], widths[2], 2)
        self.block3 = WideStage(blocks, widths[2], widths[3], 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


def drawn(network: nn.Module, seed: int = 5) -> nn.Module:
    """The network in float64 with random weights and running statistics."""
    source = torch.Generator().manual_seed(seed)
    network = network.double()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=source, dtype=torch.float64)
                scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 1
                tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise * scale)
    return network.eval()
