"""Say what the workflow would run, why, and what it would cost; run nothing.

Reads the workflow with the same profile, configuration and targets that `snakemake` would be given, the manifests of
earlier runs and benchmarks/estimates.yaml. Prints tables, or with `--json` one JSON object. Exit code 0 whatever is
planned, 1 when the configuration is at fault.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from spillover import audit, audit_text, estimates


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help="files or rules, as for snakemake; default: the default target")
    parser.add_argument("--profile", help="a profile folder, e.g. profiles/small")
    parser.add_argument("--configfile", nargs="+", default=[], help="overlays over config/config.yaml")
    parser.add_argument("--snakefile", help="default: the Snakefile of the directory")
    parser.add_argument("--directory", default=".", help="work in this folder")
    parser.add_argument("--benchmarks", default="benchmarks/estimates.yaml", help="figures used before any run exists")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    args = parser.parse_args(argv)

    try:
        jobs = audit.planned_jobs(
            args.targets,
            profile=args.profile,
            configfiles=args.configfile,
            snakefile=args.snakefile,
            directory=args.directory,
        )
    except audit.AuditError as error:
        print(error, file=sys.stderr)
        return 1
    benchmarks = estimates.read_benchmarks(Path(args.directory, args.benchmarks))
    costs = [estimates.estimate(job, benchmarks, args.directory) for job in jobs]
    if args.json:
        print(json.dumps(audit_text.as_json(jobs, costs), indent=1, ensure_ascii=False))
    else:
        print(audit_text.as_text(jobs, costs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
