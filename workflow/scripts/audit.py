"""Say what the workflow would run, why, and what it would cost; run nothing.

Reads the workflow with the same profile, configuration and targets that `snakemake` would be given, the manifests of
earlier runs and benchmarks/estimates.yaml. Prints tables, or with `--json` one JSON object. Exit code 0 whatever is
planned, 1 when the configuration is at fault.
"""

from __future__ import annotations

import argparse
import json
import signal
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

    options = {name: getattr(args, name) for name in ("profile", "snakefile", "directory")}
    options["configfiles"] = args.configfile
    try:
        jobs = audit.planned_jobs(args.targets, **options)
        later = audit.following_jobs(jobs, args.targets, **options)
    except audit.AuditError as error:
        print(error, file=sys.stderr)
        return 1
    benchmarks = estimates.read_benchmarks(Path(args.directory, args.benchmarks))
    costs = [estimates.estimate(job, benchmarks, args.directory) for job in jobs]
    following = {
        phase: (phase_jobs, [estimates.estimate(job, benchmarks, args.directory) for job in phase_jobs])
        for phase, phase_jobs in later.items()
    }
    if args.json:
        print(json.dumps(audit_text.as_json(jobs, costs, following), indent=1, ensure_ascii=False))
    else:
        print(audit_text.as_text(jobs, costs, following))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends the program, without a traceback
    sys.exit(main())
