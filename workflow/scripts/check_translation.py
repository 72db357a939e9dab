"""Stop the run if a translation is not good enough to train on, with a verdict that a person can read.

Reads the English replies and one translation; writes the verdict (`--out`, JSON) and its manifest if every gate is
passed, and prints it in any case. The gate of faithfulness needs a judge in the specification; without one it is
left out, and the verdict says so.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import api_costs, api_jobs, provenance, translation_gates
from spillover.api_outcomes import FatalApiError
from spillover.language_id import identifier
from spillover.languages import load_languages


def judge_sample(table: pd.DataFrame, spec: dict, language_name: str, args) -> tuple[list, pd.DataFrame, dict]:
    """The gates of faithfulness, the table with a column `verdict` for the sampled pairs, and the ledger."""
    chosen = translation_gates.sample(table, spec["gates"]["faithful_sample"])
    settings = spec["judge"]
    requests = [
        translation_gates.comparison(settings["model"], language_name, source, translation, settings["thinking"])
        for source, translation in zip(chosen["source"], chosen["translation"], strict=True)
    ]
    answers = api_jobs.obtain_by_flags(
        requests,
        args,
        f"faithfulness-{args.language}",
        settings["model"] + translation_gates.RUBRIC,
        answer_tokens=lambda request: translation_gates.ANSWER_TOKENS,
    )
    messages = [answers[request].message for request in requests]
    gates, verdicts = translation_gates.faithfulness(messages, spec["gates"])
    return gates, table.merge(chosen[["id"]].assign(verdict=verdicts), on="id", how="left"), answers.ledger


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True)
    parser.add_argument("--translation", required=True)
    parser.add_argument("--language", required=True)
    parser.add_argument("--registry", default="resources/languages.yaml")
    parser.add_argument("--spec", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    api_jobs.add_api_flags(parser)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    registry = load_languages(args.registry)
    source, translated = pd.read_parquet(args.source), pd.read_parquet(args.translation)
    counts = {"translated": len(translated), "without a translation": len(source) - len(translated)}
    identify = identifier("langdetect", registry, registry.codes)
    ledger: dict = {}
    try:
        table = translation_gates.pairs(source, translated)
        script = registry[args.language].script
        gates, table = translation_gates.measure(table, args.language, script, identify, spec["gates"])
        if spec["judge"] and all(gate.passed for gate in gates):  # no money for what has failed already
            more, table, ledger = judge_sample(table, spec, registry[args.language].name, args)
            gates += more
    except (ValueError, FatalApiError) as error:
        raise SystemExit(str(error)) from None
    result = translation_gates.verdict(args.language, gates, table, counts)
    result["faithfulness"] = "judged" if ledger else "not judged: no judge is configured"
    print(translation_gates.readable(result), flush=True)
    if not result["passed"]:
        raise SystemExit(
            f"The translation into {registry[args.language].name} is not good enough to train on; the failed gates are "
            "above. Mend the translator, or, after reading the pairs, change `translation_gates` in the configuration."
        )
    with provenance.atomic_path(args.out) as path:
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    provenance.write_manifest(
        args.manifest,
        stage="translation_check",
        spec=spec,
        inputs=[args.source, args.translation, args.registry],
        outputs=[args.out],
        seconds=clock,
        extra=api_costs.for_manifest(ledger),
    )


if __name__ == "__main__":
    main()
