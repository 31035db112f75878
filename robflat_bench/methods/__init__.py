"""Catalogue of training methods (torch-free); equations and code lie in the files the factories name."""

from __future__ import annotations

from pydantic import Field

from robflat_bench.base import MethodInfo, Params, hookimpl


class TRADESParams(Params):
    """beta: weight of the divergence term (lambda in some papers)."""

    beta: float = Field(default=6.0, ge=0)


@hookimpl
def robflat_bench_methods() -> list[MethodInfo]:
    return [
        MethodInfo(
            "standard",
            "cross-entropy on clean images: the control without robustness",
            "robflat_bench.methods.standard:Standard",
            passes="1 forward, 1 backward",
        ),
        MethodInfo(
            "at",
            "adversarial training: cross-entropy on PGD examples",
            "robflat_bench.methods.at:AT",
            citation="Madry et al.: Towards deep learning models resistant to adversarial attacks. ICLR 2018",
            passes="T+2 forward, T+1 backward (T attack steps)",
        ),
        MethodInfo(
            "trades",
            "clean cross-entropy plus divergence between clean and adversarial predictions",
            "robflat_bench.methods.trades:TRADES",
            TRADESParams,
            "Zhang et al.: Theoretically principled trade-off between robustness and accuracy. ICML 2019",
            passes="T+4 forward, T+2 backward (T attack steps)",
        ),
    ]
