"""A protocol for tests of whole runs: real digits, a network of a few hundred weights, about a second."""

_TOML = """
name = "{name}"
version = "1.0"
summary = "Everything a run does, in a second."

[fixed]
backbone = "resnet8(width=4, strides=[1, 1, 1], stem_stride=2)"
precision = "float32"
threads = 1

[fixed.data]
dataset = "digits"
train = {{ pool = "train", start = 0, stop = 60, count = 60 }}
heldout = {{ pool = "train", start = 60, stop = 80, count = 20 }}
test = {{ pool = "train", start = 80, stop = 110, count = 30 }}

[fixed.threat]
epsilon = 0.2

[fixed.selection]
every = {every}
attack = "pgd(steps=2)"

[[fixed.attacks]]
attack = "pgd(steps=2)"
test = 30
train = {train}
{more}
[recipe]
epochs = {epochs}
batch_size = 20
learning_rate = 0.05
epsilon = 0.2
attack_steps = 2
attack_step = 0.1
"""
# A stride inside the network would be a 1x1 convolution whose oneDNN backward (3.13) writes past its buffer where
# it has fewer input channels than a SIMD register: https://github.com/uxlfoundation/oneDNN/issues/6035


def tiny_protocol(name: str = "tiny", *, epochs: int = 1, every: int = 1, train: int = 0, more: str = "") -> str:
    """The text of the protocol: so many epochs of three updates, the held-out check every so many, the attack on so
    many training images too; more: further tables of `[fixed]`, as TOML."""
    return _TOML.format(name=name, epochs=epochs, every=every, train=train, more=more)
