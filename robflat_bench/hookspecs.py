"""Every hook a plugin may implement, grouped by life cycle.

A plugin is a module named in the entry-point group `robflat_bench` of its distribution:

    [project.entry-points.robflat_bench]
    my-methods = "my_package.plugin"

It decorates functions of the names below with `robflat_bench.api.hookimpl`. Implementations may take fewer
arguments than the specification. Registration hooks are called once per process, must not import torch, and
return descriptions only: the class behind a row is imported when it is first used.
"""

from __future__ import annotations

import pluggy

from robflat_bench.base import (
    PROJECT,
    AttackInfo,
    BackboneInfo,
    DatasetInfo,
    LauncherInfo,
    MeasureInfo,
    MethodInfo,
    ModifierInfo,
)

hookspec = pluggy.HookspecMarker(PROJECT)


# ---------------------------------------------------------------------------------------------------------
# Registration: what a plugin offers
# ---------------------------------------------------------------------------------------------------------


@hookspec
def robflat_bench_methods() -> list[MethodInfo]:
    """Training methods: how one batch becomes a loss.

    Example::

        @hookimpl
        def robflat_bench_methods():
            return [MethodInfo("my-at", "AT with a twist", "my_package.my_at:MyAT", MyParams)]
    """
    raise NotImplementedError


@hookspec
def robflat_bench_modifiers() -> list[ModifierInfo]:
    """Modifiers: what can be added to any method with `+`, each at its declared joints.

    Example::

        return [ModifierInfo("my-ema", "an average", "my_package.ema:MyEMA", joints=("after_step", "model"))]
    """
    raise NotImplementedError


@hookspec
def robflat_bench_attacks() -> list[AttackInfo]:
    """Attacks: from a model and images to images inside the threat model's ball and the image box.

    Example::

        return [AttackInfo("noise", "uniform noise", "my_package.noise:Noise")]
    """
    raise NotImplementedError


@hookspec
def robflat_bench_measures() -> list[MeasureInfo]:
    """Measures: a number about a trained model, with its standard error.

    Example::

        return [MeasureInfo("weight-norm", "l2 norm of the weights", "my_package.norms:WeightNorm")]
    """
    raise NotImplementedError


@hookspec
def robflat_bench_backbones() -> list[BackboneInfo]:
    """Backbones: `factory(params, shape, activation) -> nn.Module`, images in [0,1] in, logits out.

    Example::

        return [BackboneInfo("my-net", "a small net", "my_package.net:my_net", MyNetParams)]
    """
    raise NotImplementedError


@hookspec
def robflat_bench_datasets() -> list[DatasetInfo]:
    """Datasets: where labelled images come from.

    Example::

        return [DatasetInfo("svhn", "street view house numbers", "my_package.svhn:SVHN")]
    """
    raise NotImplementedError


@hookspec
def robflat_bench_launchers() -> list[LauncherInfo]:
    """Launchers: where the runs of a sweep are processes; `factory(params, resources)` is a `Launcher`.

    Example::

        return [LauncherInfo("slurm", "a job of its queue each", "my_package.slurm:Slurm", SlurmParams)]
    """
    raise NotImplementedError
