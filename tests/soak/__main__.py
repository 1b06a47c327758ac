"""`python -m soak`: run the campaign, print the counts, and exit with 1 if anything happened that must not."""

import argparse
import json
import sys

from soak.campaign import KINDS, Tally, run


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0, help="how long, about")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--only", action="append", choices=KINDS, help="a kind of fault; may be repeated")
    parser.add_argument("--number", type=int, help="one fault of each kind: that number")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tally = run(options.seed, options.seconds, options.only, options.number)
    print(json.dumps(tally.to_dict()) if options.json else table(tally))
    return 0 if tally.clean else 1


def table(tally: Tally) -> str:
    """Return the counts, for people."""
    rows = [f"seed {tally.seed}, {tally.seconds:.0f} s", "", "faults injected"]
    rows += [f"  {kind:<24}{times:>8,}" for kind, times in tally.injected.items()]
    rows += [f"  {'all':<24}{sum(tally.injected.values()):>8,}", ""]
    rows += [f"{what:<26}{times:>8,}" for what, times in tally.failures.items()]
    return "\n".join([*rows, *tally.first])


if __name__ == "__main__":
    sys.exit(main())
