"""Write the report: one offline page that opens with the answers of all experiments.

Reads `--claims` (claims.parquet); per experiment of `--experiments` (JSON of Files.report_sections) the figures and
summary of its closing analysis and the completions and labels of its runs; below the results folder `--root` manifests
and merge reports, where they lie: they change only together with the files they describe. Writes `--out`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from spillover import provenance, report_facts, report_page
from spillover.arguments import read_json
from spillover.browser import KEY
from spillover.claims import NOT_RUN


def read(paths: list[str], columns: list[str]) -> pd.DataFrame:
    tables = [table for path in paths if len(table := pd.read_parquet(path, columns=columns))]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", required=True)
    parser.add_argument("--claims", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--pages", default="workflow/report")
    parser.add_argument("--spec", default="{}")
    parser.add_argument("--workflow-report", default="workflow_report.html")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec, pages = read_json(args.spec), Path(args.pages)
    claims = pd.read_parquet(args.claims)
    sections, inputs = [], [args.claims]
    order = {name: place for place, name in enumerate(claims["experiment"].unique())}
    for about in sorted(read_json(args.experiments), key=lambda about: order.get(about["name"], len(order))):
        about |= {"settings": spec["experiments"][about["name"]], "model": spec["model"], "judge": spec["judge"]}
        about["replay"] = spec["replay"]
        folder = Path(args.root, about["name"])
        completions = read(about["completions"], [*KEY, "cell", "finish_reason"])
        labels = read(about["labels"], [*KEY, "cell", "scorer", "label", "outcome"])
        caveats = report_facts.label_caveats(completions, labels) if len(completions) else []
        found = report_facts.manifests(folder)
        caveats += report_facts.merge_caveats(report_facts.merges(folder, found))
        own = claims[(claims["experiment"] == about["name"]) & (claims["verdict"] != NOT_RUN)].to_dict("records")
        sections.append(report_page.section(about, pages, own, caveats, found) | {"manifests": found})
        inputs += [*about["completions"], *about["labels"]]
    config = {key: value for key, value in spec.items() if key != "experiments"}
    text = report_page.page(
        sections, title="Spillover", config=config, folder=pages, workflow_report=args.workflow_report
    )
    with provenance.atomic_path(args.out) as path:
        path.write_text(text, encoding="utf-8")
    provenance.write_manifest(
        args.manifest, stage="report_page", spec=spec, inputs=inputs, outputs=[args.out], seconds=clock
    )


if __name__ == "__main__":
    main()
