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
    own = {"arrays", "image-folder", "parquet"}
    assert {row.name for row in rows} - own == {"cifar10", "cifar100", "digits", "svhn", "tiny-imagenet"}
    for row in rows:
        module, name = row.factory.split(":")
        assert issubclass(row.params, Params)
        assert row.citation or row.name in own
        dataset = getattr(importlib.import_module(module), name)(row.params(**row.example))
        assert isinstance(dataset, Dataset)
