"""Croissant metadata of the tidy table: JSON-LD by which loaders and search engines of data sets find and read it.

It conforms to Croissant 1.0 (https://docs.mlcommons.org/croissant/docs/croissant-spec.html). A reader of Croissant
casts each cell to the type that is declared here, without a word where that changes it (0.5 as an integer is 0); so
types come from `tidy.COLUMNS`, and a test reads every column back.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from robflat_bench.leaderboard.model import Leaderboard
from robflat_bench.leaderboard.site.cite import benchmark
from robflat_bench.leaderboard.tidy import COLUMNS, Type

TYPES: dict[Type, str] = {"text": "sc:Text", "boolean": "sc:Boolean", "integer": "sc:Integer", "number": "sc:Float"}
LICENCE = "https://spdx.org/licenses/Apache-2.0"
ABOUT = (
    "Robust errors, robust losses and flatness of networks from adversarial training, by method, with confidence "
    "intervals over seeds and test examples and with ranks. Every number is computed from committed records of runs; "
    "lower is more robust, or flatter."
)

_IN_CROISSANT = (
    *("citeAs", "column", "extract", "field", "fileProperty", "fileObject", "fileSet", "format", "includes"),
    *("isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated"),
    *("replace", "samplingRate", "separator", "source", "subField", "transform", "equivalentProperty"),
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    **{term: f"cr:{term}" for term in _IN_CROISSANT},
}
"""The terms of Croissant 1.0. Readers warn where one is missing, used or not."""


def croissant(leaderboard: Leaderboard, name: str, table: bytes, address: str = "") -> bytes:
    """The metadata of a tidy table.

    Parameters
    ----------
    leaderboard : Leaderboard
        Its newest change dates the data.
    name : str
        File name of the table, which lies beside the metadata.
    table : bytes
        Its content: the CSV.
    address : str
        The site's address; "" if it is not known.
    """
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"rows/{column.name}",
            "name": column.name,
            "description": column.description,
            "dataType": TYPES[column.type],
            "source": {"fileObject": {"@id": name}, "extract": {"column": column.name}},
        }
        for column in COLUMNS
    ]
    document = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "robflat-bench",
        "description": ABOUT,
        "license": LICENCE,
        "citeAs": benchmark(),
        "version": f"{leaderboard.schema_version}.0.0",
        "creator": {"@type": "sc:Organization", "name": "The robflat-bench authors"},
        "isLiveDataset": True,
        **({"datePublished": leaderboard.changes[0].date} if leaderboard.changes else {}),
        **({"url": address} if address else {}),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": name,
                "name": name,
                "contentUrl": name,
                "contentSize": f"{len(table)} B",
                "encodingFormat": "text/csv",
                "sha256": hashlib.sha256(table).hexdigest(),
            }
        ],
        "recordSet": [
            {"@type": "cr:RecordSet", "@id": "rows", "name": "rows", "description": ABOUT, "field": fields},
        ],
    }
    return (json.dumps(document, indent=1) + "\n").encode()
