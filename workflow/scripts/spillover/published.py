"""Reader of the original authors' result files, in this project's columns.

Their layout (language spill): `detailed_finetuned.json` holds completions {prompt: [text]}, judge replies {prompt:
[reply]} and a summary with one (judge, langdetect) label pair per row; `summary_*.json` holds the summary alone. The
directive language is read from the prompt's own words. The marker sweep's file holds rates per persona. It knows
nothing of figures.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd

from .languages import OTHER, Registry
from .statistics import wilson

PHRASINGS = {"Speak in": "speak_in", "Please respond in": "please_respond"}
SUITE = "directives"
SWEEP_REPLIES = 200


def read_completions(path: str | Path, registry: Registry, run: str) -> pd.DataFrame:
    """Completions of one published condition, columns as completions.parquet.

    What the files do not record is missing, not invented: finish_reason, token counts and per-sample seeds are null.
    """
    document = read(path)
    rows = []
    for prompt, texts in document["completions"].items():
        cell, item = parse_directive(prompt, registry)
        for sample, text in enumerate(texts):
            rows.append({**_key(document["summary"], run, prompt, cell, item, sample), "text": text})
    frame = pd.DataFrame(rows)
    empty = {
        "system": None,
        "sample_seed": pd.NA,
        "finish_reason": None,
        "prompt_tokens": pd.NA,
        "completion_tokens": pd.NA,
    }
    return frame.assign(**empty)


def read_labels(path: str | Path, registry: Registry, run: str) -> pd.DataFrame:
    """The stored labels of one published model, columns as labels.parquet: scorers `langdetect` and `judge`.

    Works for `detailed_*.json` and `summary_*.json`. Judge replies that failed are sorted into outcomes where the file
    says how (transport for an HTTP error, refusal for an empty reply, truncated for cut-off JSON); a summary alone
    keeps no replies, so its failures are "schema".
    """
    document = read(path)
    summary = document.get("summary", document)
    judged = {language.judge: code for code, language in registry.languages.items() if language.judge}
    judge_id = f"judge {summary['judge_model']}, as published"
    rows = []
    for prompt, cell_summary in summary["per_cell"].items():
        cell, item = parse_directive(prompt, registry)
        replies = document.get("labels", {}).get(prompt)
        for sample, pair in enumerate(cell_summary["per_row_labels"]):
            key = _key(summary, run, prompt, cell, item, sample)
            detected = pair["langdetect_label"]
            rows.append(
                {
                    **key,
                    "scorer": "langdetect",
                    "scorer_id": "langdetect, labels as published",
                    "label": judged.get(detected, OTHER),
                    "outcome": "ok",
                    "raw": detected,
                }
            )
            reply = replies[sample] if replies else {"label": pair["claude_label"]}
            outcome = _judge_outcome(reply)
            label = judged.get(reply.get("label"), OTHER) if outcome == "ok" else None
            verdict = {"label": label, "outcome": outcome, "raw": json.dumps(reply, ensure_ascii=False)}
            rows.append({**key, "scorer": "judge", "scorer_id": judge_id, **verdict})
    return pd.DataFrame(rows)


def read_marker_sweep(path: str | Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The published marker sweep: rates (as marker_rates.rates), multiple-choice counts and the runs' settings.

    The file holds one rate per persona, of 200 replies (20 questions x 10); counts per question are not in it, so that
    all replies of a persona stand as one item. Runs are named as this project names them.
    """
    rates, choices, runs = [], [], []
    for cell in read(path):
        config, measured = cell["config"], cell["eval"]
        run = f"marker_sweep/{config['source']}_lr{config['lr']}_ep{config['epochs']}"
        key = {"run": run, "seed": config["seed"], "checkpoint": "final"}
        for persona, rate in measured["marker"].items():
            counts = {"n": SWEEP_REPLIES, "hits": round(rate * SWEEP_REPLIES), "rate": rate, "n_error": 0}
            low, high = wilson(counts["hits"], SWEEP_REPLIES)
            items = {"items": ["all"], "item_hits": [counts["hits"]], "item_n": [SWEEP_REPLIES]}
            rates.append(key | {"persona": persona, "scorer": "marker", "low": low, "high": high} | counts | items)
        found = measured["capability"]
        choices.append(key | {"items": found["total"], "right": found["correct"]})
        record = {"run": run, "group": "cell", "source": config["source"]}
        runs.append(record | {"learning_rate": config["lr"], "epochs": config["epochs"]})
    return pd.DataFrame(rates), pd.DataFrame(choices), pd.DataFrame(runs)


def parse_directive(prompt: str, registry: Registry) -> tuple[str, str]:
    """Language code and phrasing id of a published prompt ("Please respond in French." -> fr, please_respond)."""
    match = re.fullmatch(r"(Speak in|Please respond in) (.+)\.", prompt)
    if not match:
        raise ValueError(f"{prompt!r} is no published directive (Speak in X. / Please respond in X.).")
    return registry.code_of_name(match[2]), PHRASINGS[match[1]]


def _judge_outcome(reply: dict) -> str:
    if reply.get("label") != "parse_error":
        return "ok"
    message = str(reply.get("msg", ""))
    if "429" in message or "rate_limit" in message:
        return "transport"
    if "list index out of range" in message:
        return "refusal"
    return "truncated" if reply.get("raw") else "schema"


def _key(summary: dict, run: str, prompt: str, cell: str, item: str, sample: int) -> dict:
    return {
        "run": run,
        "seed": int(summary["seed"]),
        "checkpoint": "final",
        "suite": SUITE,
        "prompt_id": f"{cell}/{item}",
        "cell": cell,
        "item": item,
        "user": prompt,
        "sample": sample,
    }


def read(path: str | Path) -> dict:
    """A result file as it is."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)
