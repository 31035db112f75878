"""Random changes of a leaderboard: of JSON, of bytes, of archives, of the file system and of documents."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import socket
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.tampering import replace_archive, replace_outcomes, rewrite
from robflat_bench.core.archives import arrays_bytes, unpack_arrays

if TYPE_CHECKING:
    from helpers.fuzzing import Field

PLACES = ["..", "../../../etc/passwd", "/etc/passwd", "a/b", ".hidden", "-rf", "C:\\x", "~root", ".", "con\x00"]
NUMBERS: list[Any] = [-1, 0, 1, 10**15, 2**63, 10**40, -(10**400), 1e308, -1e308, 1e-320, 0.5, 2]
TEXTS = [
    "",
    "\x00",
    "\x1b[2J",
    "a\nb",
    "<script>",
    "\u202e",
    "\ud800",
    "𝕏" * 300,
    "x" * 10**5,
    "nan",
    "1.0",
    "{{ 7*7 }}",
]
DTYPES = ["f2", "f4", "f8", "i1", "u8", "c16", "?", "U3", "S2", "V8", ">f8"]
STRAYS = [".x", "x", "a b", "record.json~", "\udcff", "x\ny", "seed-1-" + 16 * "0"]
STEMS = ["changes", "digits-linf", "index", "about", "data", "board", "r", "Rules", "cifar10-linf", "x.y"]
APPENDED = [b"[" * 3000, b">" * 3000, b"x = 1", b"[[rows]]", b"\xff", b"x" * 70_000]
ODD: list[Any] = [None, True, False, [], {}, [[[]]], {"": None}, float("nan"), float("inf"), -float("inf")]
KEYS = ["extra", "\u202e", "__class__", "a\nb", "\x1b[2J", "", "schema_version"]


def _odd(rng: random.Random) -> Any:
    return rng.choice(rng.choice((PLACES, NUMBERS, TEXTS, ODD)))


def _node(rng: random.Random, document: Any) -> tuple[Any, Any]:
    """A container of the document and a key of it."""
    node = document
    while True:
        keys = [*node] if isinstance(node, dict) else [*range(len(node))]
        key = rng.choice(keys)
        if not (isinstance(node[key], dict | list) and node[key] and rng.random() < 0.85):
            return node, key
        node = node[key]


def _change(rng: random.Random, document: Any) -> None:
    node, key = _node(rng, document)
    action = rng.choice(("set", "set", "scale", "remove", "add", "swap", "deep"))
    if action == "set":
        node[key] = _odd(rng)
    elif action == "scale" and isinstance(node[key], int | float):
        node[key] *= rng.choice((-1, 0, 1.5, 2, 1000, 1e300))
    elif action == "remove":
        del node[key]
    elif action == "add":
        node.update({rng.choice(KEYS): _odd(rng)}) if isinstance(node, dict) else node.append(_odd(rng))
    elif action == "swap":
        other, name = _node(rng, document)
        node[key], other[name] = other[name], node[key]
    elif action == "deep":
        for _ in range(rng.choice((3, 200))):
            node[key] = [node[key]] if rng.random() < 0.5 else {"x": node[key]}


def _documents(field: Field) -> list[Path]:
    return [
        *(field.entry / name for name in 4 * ["record.json"] + 2 * ["entry.json"]),
        *(field.entry / "evaluations").glob("*.json"),
        field.root / "experiments" / "training.json",
    ]


def json_values(field: Field, rng: random.Random) -> None:
    """Values, keys and nesting of a JSON document."""
    path = rng.choice(_documents(field))
    document = json.loads(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 3))):
        try:
            _change(rng, document)
        except (KeyError, IndexError, OverflowError, ValueError):  # a former change took the place away
            continue
    text = json.dumps(document)
    if rng.random() < 0.05:
        text = text.replace(": 1", ": " + 5000 * "1", 1)
    if rng.random() < 0.05:
        text = text.replace("{", '{"schema_version": 1, "schema_version": 2, ', 1)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    _follow(field, path, rng)


def _follow(field: Field, path: Path, rng: random.Random) -> None:
    """Mostly, entry.json says that the record has always been so: the mutant comes to the checks behind the hash."""
    if path.name == "record.json" and rng.random() < 0.9:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        rewrite(field.entry, lambda said: said.update(record=digest), "entry.json")


def _bytes(rng: random.Random, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(rng.randint(1, 8)):
        place, length = rng.randrange(len(changed) or 1), rng.choice((1, 4, 40, 4000))
        action = rng.choice(("flip", "flip", "cut", "double", "random", "end"))
        if action == "flip" and changed:
            changed[place] ^= 1 << rng.randrange(8)
        elif action == "cut":
            del changed[place : place + length]
        elif action == "double":
            changed[place:place] = changed[place : place + length]
        elif action == "random":
            changed[place : place + length] = rng.randbytes(length)
        elif action == "end":
            del changed[place:]
    return bytes(changed)


def json_bytes(field: Field, rng: random.Random) -> None:
    """Bytes of a JSON document."""
    path = rng.choice(_documents(field))
    path.write_bytes(_bytes(rng, path.read_bytes()))
    _follow(field, path, rng)


def archive_bytes(field: Field, rng: random.Random) -> None:
    """Bytes of the outcomes; mostly with a hash that follows."""
    raw = _bytes(rng, (field.entry / "outcomes.npz").read_bytes())
    if rng.random() < 0.1:
        (field.entry / "outcomes.npz").write_bytes(raw)
    else:
        replace_archive(field.entry, raw)


def arrays(field: Field, rng: random.Random) -> None:
    """Names, shapes, types and values of the outcomes."""

    def change(outcomes: dict[str, np.ndarray]) -> None:
        name = rng.choice([*outcomes])
        array = outcomes.pop(name)
        other = rng.choice([*outcomes, "extra", "../../x", "a\nb", "last/test/new attack/error", ""])
        odd = np.array(rng.choice([np.nan, np.inf, -1.0, 1e308, 1e-320, 0.0]))
        ways: list[Any] = [
            lambda: None,
            lambda: {other: array},
            lambda: {name: array[: rng.randrange(len(array))]},
            lambda: {name: array.reshape(1, *array.shape)},
            lambda: {name: np.concatenate([array, array])},
            lambda: {name: array.astype(rng.choice(DTYPES))},
            lambda: {name: np.where(np.arange(array.size).reshape(array.shape) == 0, odd, array)},
            lambda: {name: np.full_like(array, odd)},
            lambda: {name: array[::-1]},
            lambda: {name: np.array(7.0)},
            lambda: {name: np.zeros((0, 3))},
            lambda: {name: ~array if array.dtype.kind == "b" else -array},
            lambda: {name: array, other: array},
            lambda: {name: array} | {f"extra/{k}": np.zeros(1) for k in range(rng.choice((3, 1100)))},
            lambda: {name: np.zeros(9_000_000)},
        ]
        with np.errstate(all="ignore"):
            outcomes.update(rng.choice(ways)() or {})

    try:
        replace_outcomes(field.entry, change)
    except (ValueError, TypeError):  # numpy does not convert these values to that type
        archive_bytes(field, rng)


def archive_members(field: Field, rng: random.Random) -> None:
    """An archive as no evaluation writes it: other compression, names twice, folders, odd headers, a bomb."""
    found = unpack_arrays((field.entry / "outcomes.npz").read_bytes())
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, array in found.items():
            file = io.BytesIO()
            version = rng.choice(((1, 0), (2, 0)))
            np.lib.format.write_array(file, np.asarray(array, order=rng.choice("CF")), version=version)
            archive.writestr(f"{name}.npy", file.getvalue() + rng.choice(4 * [b""] + [b"more"]))
        extra = rng.choice(("none", "none", "folder", "twice", "text", "bomb", "object", "place"))
        if extra == "folder":
            archive.writestr("folder/", b"")
        elif extra == "text":
            archive.writestr("readme.txt", b"hello")
        elif extra == "bomb":
            archive.writestr("bomb.npy", bytes(70 * 1024 * 1024))
        elif extra == "object":
            np.save(file := io.BytesIO(), np.array([object], dtype=object), allow_pickle=True)
            archive.writestr("object.npy", file.getvalue())
        elif extra == "place":
            archive.writestr("../../../outside/x.npy", arrays_bytes({}))
    replace_archive(field.entry, buffer.getvalue())


def files(field: Field, rng: random.Random) -> None:
    """Links, pipes, sockets, folders, strays; files that are missing or another's."""
    belonging = [*(field.entry / name for name in ("record.json", "outcomes.npz", "entry.json")), *field.pristine]
    folders = [field.entry, *field.entry.parents[:4], field.root / "pages", field.entry / "evaluations"]
    path = rng.choice(belonging)
    actions = ("remove", "link", "fifo", "socket", "folder", "stray", "another", "move", "linked folder", "copy")
    action = rng.choice(actions)
    same = field.entry.name[-16:]
    if action == "stray":
        path = rng.choice(folders) / rng.choice(STRAYS)
        action = rng.choice(("link", "fifo", "socket", "folder", "write"))
    if action == "linked folder":
        folder, aside = rng.choice(folders[:-3]), field.root / "aside"
        folder.rename(aside)
        folder.symlink_to(rng.choice((aside, field.outside, Path("/etc"), folder)))
    elif action == "move":
        field.entry.rename(field.entry.with_name(rng.choice(("seed-1-" + 16 * "0", f"seed-2-{same}", "x"))))
    elif action == "copy":
        name = f"{rng.choice(('at-x', 'at', 'mart'))}/seed-{rng.choice('129')}-{rng.choice(('0' * 16, same))}"
        if (target := field.entry.parents[1] / name) != field.entry:
            shutil.copytree(field.entry, target, dirs_exist_ok=True)
    elif action == "another":
        path.write_bytes(field.pristine[rng.choice([*field.pristine])])
    else:
        _make(field, rng, path, action)


def _make(field: Field, rng: random.Random, path: Path, action: str) -> None:
    """Another kind of file, or none, in the place of a file."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
    if action == "link":
        path.symlink_to(rng.choice((field.outside / "secret", Path("/dev/zero"), path, field.entry / "outcomes.npz")))
    elif action == "fifo":
        os.mkfifo(path)
    elif action == "socket":
        bind_socket(path)
    elif action == "folder":
        path.mkdir(exist_ok=True)
    elif action == "write":
        path.write_bytes(b"x")


def bind_socket(path: Path) -> None:
    """Make a socket there."""
    home = Path.cwd()
    os.chdir(path.parent)  # a socket's address has at most 107 characters
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(home)


def documents(field: Field, rng: random.Random) -> None:
    """Pages and references: their bytes, values and names."""
    path = field.root / rng.choice(("pages/about.md", "references/digits-linf.toml", "board.json"))
    raw = rng.choice(
        (
            _bytes(rng, path.read_bytes()),
            path.read_bytes().replace(b"0.54", rng.choice((b"nan", b"-1", b"54.0", b"9" * 5000, b'"x"', b"inf"))),
            path.read_bytes() + b"\n" + rng.choice(APPENDED),
            rng.choice(TEXTS).encode("utf-8", "surrogatepass") * 3,
        )
    )
    if rng.random() < 0.3:
        path = path.with_name(rng.choice(STEMS) + path.suffix)
    path.write_bytes(raw)


MUTATIONS = {
    each.__name__: each
    for each in (json_values, json_values, json_bytes, archive_bytes, arrays, archive_members, files, documents)
}
