"""BibTeX of the benchmark and of the paper whose claims it tests."""

from __future__ import annotations

from robflat_bench import __version__

PAPER = """@inproceedings{stutz2021relating,
  title = {Relating Adversarially Robust Generalization to Flat Minima},
  author = {David Stutz and Matthias Hein and Bernt Schiele},
  year = {2021},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  pages = {7807--7817},
  eprint = {2104.04448},
  archivePrefix = {arXiv}
}"""
BENCHMARK = """@software{{robflatbench,
  title = {{robflat-bench: adversarially robust generalization and flat minima}},
  author = {{{{The robflat-bench authors}}}},
  version = {{{version}}}
}}"""


def benchmark() -> str:
    """The entry of the benchmark."""
    return BENCHMARK.format(version=__version__)


def entries() -> list[tuple[str, str]]:
    """Title and BibTeX entry: the benchmark, and the paper."""
    return [("The benchmark", benchmark()), ("The paper that it tests", PAPER)]
