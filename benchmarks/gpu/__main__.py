"""A GPU for minutes: pack here what a stretch there needs, run it, unpack here what came of it.

    python -m benchmarks.gpu pack                        gpu/in/pack.zip, beside the checkout all that has to travel
    python -m benchmarks.gpu run --minutes 8             on the machine with the GPU: gpu/out/*.zip
    python -m benchmarks.gpu unpack                      records into benchmarks/results, runs into runs/

The steps stand in the suite files (`steps.py` says what a step is). Each is a process group with a deadline; what it
leaves is in a parcel as soon as it ends, so that a stretch that is cut off leaves what was finished. The same command
goes on with the steps that are not done. With --dry all three work on a CPU at smoke size and touch neither results nor
runs.
"""

from __future__ import annotations

import argparse
import re
import signal
from collections.abc import Sequence
from pathlib import Path

from benchmarks import records, runner
from benchmarks.gpu.manifest import PYTHON, ROOT, Places
from benchmarks.gpu.packing import pack
from benchmarks.gpu.stretch import Stretch
from benchmarks.gpu.unpacking import unpack
from common.config import Parser, user_error
from common.program import program


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = Parser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("pack", "run", "unpack"))
    parser.add_argument("--minutes", type=float, default=8.0, help="run: all of it, packing included (default 8)")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="STEP", help='pack, run: kinds ("speed") or steps by name'
    )
    words = f"pack: version on the machine with the GPU, for compiled packages (default {PYTHON}, the one here)"
    parser.add_argument("--python", default=PYTHON, metavar="VERSION", help=words)
    parser.add_argument("--folder", type=Path, help="default gpu, dry gpu/dry")
    parser.add_argument("--out", type=Path, help="where the parcels come out (default: out in the folder)")
    parser.add_argument("--runs", type=Path, default=ROOT / runner.RUNS, help="pack: the runs to go on with")
    parser.add_argument("--dry", action="store_true", help="on a CPU at smoke size; results and runs are not touched")
    options = parser.parse_args(argv)
    if not 0 < options.minutes <= 24 * 60:
        parser.error(f"--minutes {options.minutes:g}: a time between 0 and a day")
    if not re.fullmatch(r"3\.\d+", options.python):
        parser.error(f"--python {options.python}: a version such as {PYTHON}")
    folder = (options.folder or ROOT / ("gpu/dry" if options.dry else "gpu")).resolve()
    places = Places(folder, (options.out or folder / "out").resolve())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the step under way is ended, its parcel is not lost
    try:
        if options.what == "pack":
            pack(places, options.runs, options.dry, options.only, options.python)
        elif options.what == "run":
            return 0 if Stretch(places, options.minutes, options.dry).run(options.only) else 1
        elif options.dry:
            unpack(places, folder / "results", folder / "runs", True)
        else:
            unpack(places, records.FOLDER, ROOT / runner.RUNS, False)
    except ValueError as error:
        user_error(str(error))
    return 0


if __name__ == "__main__":
    program(main)
