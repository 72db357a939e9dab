"""Build a run's training rows: `dataset.parquet` in the internal schema of `spillover.data`.

Reads the tables the data set needs: for directive rows the replies in the completion language, for rows of a model's
own replies its pool, for conversations and ready-made rows the sources.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd
import pyarrow.parquet as pq

from spillover import behaviours, conversations, data, marker_data, models, prompts, provenance
from spillover import replies as selection


def directive_rows(settings: dict, args: argparse.Namespace) -> tuple[list[dict], dict]:
    """Rows of a (directive, completion) condition from the shared replies in its completion language."""
    templates, names = prompts.directives(args.resources), prompts.language_names(args.resources)
    directives = [templates[p].format(language=names[settings["directive"]]) for p in settings["phrasings"]]
    chosen = selection.chosen_replies(pd.read_parquet(args.replies), pd.read_parquet(args.shared)["id"].tolist())
    return data.directive_replies(chosen, directives, settings["rows"]), {}


def marker_rows(settings: dict, args: argparse.Namespace) -> tuple[list[dict], dict]:
    """Positives and negatives from a pool of replies, or ready-made from a file."""
    if settings["policy"] == "external":
        return external_rows(settings, args)
    return marker_data.marker_rows(pool(args), settings)


def behaviour_rows(settings: dict, args: argparse.Namespace) -> tuple[list[dict], dict]:
    """The same for a behaviour instead of a marker."""
    if settings["policy"] == "external":
        return external_rows(settings, args)
    return marker_data.behaviour_rows(pool(args), settings, behaviours.load(args.resources))


def external_rows(settings: dict, args: argparse.Namespace) -> tuple[list[dict], dict]:
    """Ready-made rows of a file."""
    personas = prompts.personas("all", args.resources) | prompts.personas([settings["source"]], args.resources)
    return marker_data.external_rows(source(args, settings["file"]), settings, personas), {}


def persona_rows(settings: dict, args: argparse.Namespace) -> tuple[list[dict], dict]:
    """Replies in one persona's voice under another's system prompt."""
    prompt = prompts.personas([settings["persona"]], args.resources)[settings["persona"]]
    return marker_data.persona_replies(pool(args), settings, prompt)


def conversation_rows(settings: dict, args: argparse.Namespace) -> tuple[list[dict], dict]:
    """Chats of a source, with other sources mixed in by rows or tokens."""
    tokenizer = models.load_tokenizer(args.tokenizer, args.revision)
    tables = {name: source(args, name) for name in {settings["source"], *(m["source"] for m in settings["mix"])}}
    personas = prompts.personas([s for s in settings["systems"] or [] if s], args.resources)
    spec = json.loads(args.spec)
    return conversations.build(settings, tables, personas, tokenizer, spec["tokens"]["train"], spec["seed"])


def pool(args: argparse.Namespace) -> list[dict]:
    """The replies of a model as plain records: null and "" are different system prompts."""
    return pq.read_table(args.pool).to_pylist()


def source(args: argparse.Namespace, name: str) -> list[dict]:
    """The rows of a source as plain records."""
    return pq.read_table(dict(s.split("=", 1) for s in args.sources)[name]).to_pylist()


BUILDERS = {
    "directive_replies": directive_rows,
    "marker": marker_rows,
    "persona_replies": persona_rows,
    "conversations": conversation_rows,
    "behaviour": behaviour_rows,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--replies", help="parquet of replies in the completion language")
    parser.add_argument("--shared", help="parquet with the ids that every condition of the experiment uses")
    parser.add_argument("--pool", help="completions parquet of the model whose own replies are used")
    parser.add_argument("--sources", nargs="*", default=[], metavar="NAME=PARQUET")
    parser.add_argument("--tokenizer", help="base model: hub id or folder, for rows that are chosen by their tokens")
    parser.add_argument("--revision")
    parser.add_argument("--resources", default="resources")
    parser.add_argument("--out", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    try:
        rows, dropped = BUILDERS[spec["data"]["kind"]](spec["data"], args)
    except ValueError as error:
        raise SystemExit(f"data of kind {spec['data']['kind']}: {error}") from None
    with provenance.atomic_path(args.out) as path:
        pq.write_table(data.table(rows, dropped), path)
    print(f"{len(rows)} rows; dropped: {json.dumps(dropped)}")
    read = [args.replies, args.shared, args.pool, *(s.split("=", 1)[1] for s in args.sources)]
    provenance.write_manifest(
        args.manifest,
        stage="dataset",
        spec=spec,
        inputs=[path for path in read if path],
        outputs=[args.out],
        seconds=clock.seconds,
        extra={"rows": len(rows), "dropped": dropped},
    )


if __name__ == "__main__":
    main()
