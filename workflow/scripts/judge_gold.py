"""Have the judge label a gold set, as it labels completions: what it says beside what a person said.

Reads `--gold` (.parquet or .csv with the columns text and label, for the published judge also user: the request).
Writes `--out` (label: the person's, judged: the judge's or null, outcome, raw, scorer_id) and its manifest.
"""

from __future__ import annotations

import argparse
import json

from spillover import api_costs, api_jobs, gold, judging, provenance, published_judge
from spillover.api_outcomes import FatalApiError
from spillover.languages import load_languages


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gold", required=True)
    parser.add_argument("--languages", nargs="+", required=True, metavar="CODE", help="those that the judge names")
    parser.add_argument("--registry", default="resources/languages.yaml")
    parser.add_argument("--spec", required=True, help="JSON: the judge's settings")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    api_jobs.add_api_flags(parser)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    settings = json.loads(args.spec)
    published = settings.get("rules") == "published"
    judge = (published_judge if published else judging).judge(settings, load_languages(args.registry), args.languages)
    try:
        table = gold.read(args.gold, args.languages, asked=published)
        asked = ["user", "text"] if published else ["text"]
        requests = [judge.request(*row) for row in table[asked].itertuples(index=False)]
        answers = api_jobs.obtain_by_flags(
            requests, args, "gold", judge.scorer_id, answer_tokens=lambda request: judging.ANSWER_TOKENS
        )
        said = judging.answered(requests, judge.read, answers).rename(columns={"label": "judged"})
        judging.check_transport(said.assign(cell="gold"), settings["max_error_rate"])
    except (ValueError, FatalApiError) as error:
        raise SystemExit(str(error)) from None
    table = table[["label"]].join(said).assign(scorer_id=judge.scorer_id)
    with provenance.atomic_path(args.out) as path:
        table.to_parquet(path, index=False)
    print(f"{len(table)} texts, the judge agrees on {int((table['label'] == table['judged']).sum())}")
    provenance.write_manifest(
        args.manifest,
        stage="judge_gold",
        spec=settings,
        inputs=[args.gold, args.registry],
        outputs=[args.out],
        seconds=clock,
        extra=api_costs.for_manifest(answers.ledger),
    )


if __name__ == "__main__":
    main()
