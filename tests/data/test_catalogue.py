"""The catalogue of datasets is light, and every row leads to a Dataset."""

import importlib
import subprocess
import sys

from robflat_bench.core import Dataset, Params
from robflat_bench.data import robflat_bench_datasets


def test_catalogue_imports_nothing_heavy():
    code = (
        "import sys, robflat_bench.data as data; data.robflat_bench_datasets();"
        "print(sorted({'torch', 'sklearn', 'pyarrow', 'PIL', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_row_leads_to_a_dataset():
    rows = robflat_bench_datasets()
    assert [row.name for row in rows] == ["cifar10", "digits"]
    for row in rows:
        module, name = row.factory.split(":")
        assert row.params is Params
        assert row.citation
        assert isinstance(getattr(importlib.import_module(module), name)(row.params()), Dataset)
