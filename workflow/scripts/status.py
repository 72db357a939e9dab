"""Say how far the experiments are: runs done, running and failed, the time left and the money spent; run nothing.

Reads the workflow with the same profile, configuration and targets that `snakemake` would be given, and what earlier
and running jobs left: logs, benchmark files, manifests and Snakemake's own markers. Exit code 1 when the configuration
is at fault or a job has failed.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys

from spillover import audit, status


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help="files or rules, as for snakemake; default: the default target")
    parser.add_argument("--profile", help="a profile folder, e.g. profiles/small")
    parser.add_argument("--configfile", nargs="+", default=[], help="overlays over config/config.yaml")
    parser.add_argument("--snakefile", help="default: the Snakefile of the directory")
    parser.add_argument("--directory", default=".", help="work in this folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    args = parser.parse_args(argv)

    try:
        found = status.progress(
            args.targets,
            profile=args.profile,
            configfiles=args.configfile,
            snakefile=args.snakefile,
            directory=args.directory,
        )
    except audit.AuditError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(status.as_json(found), indent=1, ensure_ascii=False) if args.json else status.as_text(found))
    return int(any(item.of(status.FAILED) for item in found))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends the program, without a traceback
    sys.exit(main())
