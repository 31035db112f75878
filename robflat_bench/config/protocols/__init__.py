"""The protocols that come with the package: one TOML file each, found like a stranger's. `protocol` reads them."""

from importlib import resources
from importlib.resources.abc import Traversable

from robflat_bench.core import hookimpl


@hookimpl
def robflat_bench_protocols() -> list[Traversable]:
    """The built-in protocols."""
    return [file for file in resources.files(__name__).iterdir() if file.name.endswith(".toml")]
