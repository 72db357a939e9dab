"""Snakemake's command line without its limit of started jobs a second: for runs on this machine, same arguments.

The limit (`--max-jobs-per-timespan`, 100 a second, and no value turns it off) lets the scheduler look at all waiting
jobs again a second after each look, and every job that ends begins one more such round while others wait for a core.
After a few dozen jobs Snakemake 9.27 computes without pause: of two cores the jobs get one.
"""

from __future__ import annotations

import sys

from snakemake import cli
from snakemake.exceptions import print_exception


def main(argv: list[str] | None = None) -> None:
    try:
        parser, args = cli.parse_args(argv)
        args.max_jobs_per_timespan = None
        success = cli.args_to_api(args, parser)
    except Exception as error:
        print_exception(error)
        success = False
    sys.exit(0 if success else 1)


if __name__ == "__main__":
    main()
