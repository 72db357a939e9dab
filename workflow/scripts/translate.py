"""Translate English replies into one language. Rows without a translation are dropped by id and counted.

Reads parquet (id, language, text), writes parquet with the same columns in the target language. Calls to Claude are
kept in a journal: running again pays only for replies that have no translation yet.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from spillover import api_costs, api_jobs, provenance
from spillover.api_outcomes import TRANSPORT, FatalApiError
from spillover.languages import load_languages
from spillover.translation import ENGLISH_CHARACTERS_A_TOKEN, ClaudeTranslator, SmallWorldTranslator


def by_claude(texts: list[str], settings: dict, args) -> tuple[list[tuple[str | None, str]], dict]:
    """(translation or None, outcome) of every text, and the ledger."""
    name = load_languages(f"{args.resources}/languages.yaml")[args.language].name
    translator = ClaudeTranslator(settings["model"], name, settings["thinking"])
    requests = [translator.request(text) for text in texts]
    length = {request.id: len(text) for request, text in zip(requests, texts, strict=True)}
    answers = api_jobs.obtain_by_flags(
        requests,
        args,
        f"translation-{args.language}",
        translator.identity,
        answer_tokens=lambda request: length.get(request.id, 0) / ENGLISH_CHARACTERS_A_TOKEN,
        structured=False,
    )
    replies = [answers[request] for request in requests]
    return [translator.read(r.message) if r.message else (None, TRANSPORT) for r in replies], answers.ledger


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replies", required=True)
    parser.add_argument("--language", required=True)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--resources", default="resources")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    api_jobs.add_api_flags(parser)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    settings = spec["translator"]
    replies = pd.read_parquet(args.replies)
    extra: dict = {}
    if settings["name"] == "small_world":
        offline = SmallWorldTranslator(args.resources)
        results = [offline.translate(text, args.language) for text in replies["text"]]
    else:
        try:
            results, ledger = by_claude(replies["text"].tolist(), settings, args)
        except FatalApiError as error:
            raise SystemExit(str(error)) from None
        extra = api_costs.for_manifest(ledger)
    table = replies.assign(language=args.language, text=[text for text, _ in results], outcome=[o for _, o in results])
    outcomes = table["outcome"].value_counts().to_dict()
    missing = (table["outcome"] == TRANSPORT).mean()
    if missing > settings.get("max_error_rate", 0):
        raise SystemExit(
            f"{missing:.1%} of the replies got no answer from the translator after {args.attempts} attempts "
            f"(translator.max_error_rate is {settings['max_error_rate']:.1%}). Run the same command again: only they "
            "are sent."
        )
    kept = table[table["text"].notna()]
    if kept.empty:
        raise SystemExit(f"no reply could be translated into {args.language}: {outcomes}")
    with provenance.atomic_path(args.out) as path:
        kept[["id", "language", "text"]].to_parquet(path, index=False)
    print(f"{args.language}: {outcomes}")
    dropped = table[table["text"].isna()].groupby("outcome")["id"].apply(list).to_dict()
    provenance.write_manifest(
        args.manifest,
        stage="translation",
        spec=spec,
        inputs=[args.replies],
        outputs=[args.out],
        seconds=clock.seconds,
        extra={"outcomes": outcomes, "dropped": dropped, **extra},
    )


if __name__ == "__main__":
    main()
