"""Changes of a submitted entry: in a JSON file, or in its outcomes, with or without the hashes that follow."""

import hashlib
import json

from robflat_bench.core.archives import arrays_bytes
from robflat_bench.leaderboard.tree import ENTRY
from robflat_bench.records.store import read_arrays


def set_at(*path, to):
    """A change that sets one value of a document."""

    def change(document):
        node = document
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = to

    return change


def rewrite(folder, change, name="record.json", follow=True):
    """Change a JSON file of an entry; with `follow`, entry.json says that the record has always been so."""
    document = json.loads((folder / name).read_text())
    change(document)
    raw = json.dumps(document).encode()
    (folder / name).write_bytes(raw)
    if name == "record.json" and follow:
        rewrite(folder, lambda said: said.update(record=hashlib.sha256(raw).hexdigest()), ENTRY)


def replace_outcomes(folder, change):
    """Change the outcomes, and their hash in the record to match."""
    outcomes = read_arrays(folder / "outcomes.npz")
    change(outcomes)
    replace_archive(folder, arrays_bytes(outcomes))


def replace_archive(folder, raw):
    """Other bytes as the outcomes, and their hash in the record to match."""
    (folder / "outcomes.npz").write_bytes(raw)
    rewrite(folder, lambda record: record.update(outcomes=hashlib.sha256(raw).hexdigest()))
