"""Fuzz check, build, show and verify of a leaderboard as one pipeline; `tests/helpers/fuzzing.py` says what counts.

    python benchmarks/fuzz_entries.py --mutated 10000 --forged 2000

Prints a traceback for each failure, then the counts; SIGTERM ends it with the counts so far.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.fuzzing import Field

LONGEST = 30
"""Seconds after which a mutant counts as a failure."""
EVENTS = {
    "os.mkdir": (0,),
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.link": (1,),
}
"""Audit event -> its arguments that are written."""


def watch_writes(allowed: Path) -> list[str]:
    """The paths outside of a folder that this process writes from now on."""
    found: list[str] = []

    def hook(event: str, arguments: tuple) -> None:
        places = [arguments[k] for k in EVENTS.get(event, ())]
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            places = [arguments[0]]
        elif places and arguments[-1] not in (-1, None) and event != "os.symlink":
            places = []  # below a folder that is open already: `shutil.rmtree`
        for place in places:
            if isinstance(place, str | Path) and "__pycache__" not in str(place):
                path = Path(os.path.realpath(Path(place).parent)) / Path(place).name
                if allowed not in (path, *path.parents):
                    found.append(str(path))

    sys.addaudithook(hook)
    return found


def too_long(*_: object) -> None:
    raise TimeoutError(f"the pipeline takes more than {LONGEST} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutated", type=int, default=400)
    parser.add_argument("--forged", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="seed of the first mutant")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore", "Duplicate name")
    signal.signal(signal.SIGALRM, too_long)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    mutants, forgeries = (range(chosen.first, chosen.first + count) for count in (chosen.mutated, chosen.forged))
    began, ended, failures = time.monotonic(), Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        field = Field(Path(folder).resolve() / "field")
        outside = watch_writes(Path(folder).resolve())
        try:
            for kind, seed in [*(("mutant", k) for k in mutants), *(("forgery", k) for k in forgeries)]:
                signal.alarm(LONGEST)
                try:
                    ended[f"{kind}: " + getattr(field, f"try_{kind}")(random.Random(seed))] += 1
                except Exception as error:
                    traceback.print_exc()
                    failures.append(f"{kind} {seed}: {type(error).__name__}: {error}"[:300])
                finally:
                    signal.alarm(0)
        except KeyboardInterrupt:
            failures.append("stopped before the end")
    document = {
        "ended": ended,
        "failures": failures,
        "written outside": outside,
        "seconds": round(time.monotonic() - began),
        "counts": dict(sorted(field.counts.items())),
    }
    print(json.dumps(document, indent=1))  # noqa: T201
    sys.exit(bool(failures or outside))


if __name__ == "__main__":
    main()
