"""The recipe search in words: points, decisions, claims and checks turned into markdown. It decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .claims import would_decide
from .recipe_claims import NOT_SUPPORTED, STATEMENTS, SUPPORTED
from .recipe_rule import CRITERIA

SMALL = ("small", "rebuilt")
PHASE_WORDS = {
    "steps": "fewer steps",
    "regularise": "regularisation towards the untrained model",
    "rank": "lower rank and learning rate",
    "personas": "rows under mixed persona prompts",
    "rehearse": "rehearsal of broad data, and steering",
}


def summary(
    points: pd.DataFrame,
    decisions: Sequence[Mapping],
    claims: Sequence[Mapping],
    checks: Sequence[Mapping],
    thresholds: pd.DataFrame,
    norms: Mapping[str, Mapping],
    layers: pd.DataFrame,
    context: Mapping[str, Any],
) -> dict[str, Any]:
    """All statements as data: answer, caveats, claims (hypotheses, then checks), decisions, thresholds, norms.

    `context`: model, judge (or None), seeds, all_phases, schedule, plain (the baseline run), title.
    """
    stated = [{**c, "text": f"Criterion: {c['criterion']}. {c['evidence']}"} for c in claims]
    return {
        "answer": _answer(points, decisions, claims, context),
        "caveats": _caveats(points, context),
        "claims": [*stated, *checks],
        "decisions": [{key: d[key] for key in ("phase", "passed", "passing", "next", "reason")} for d in decisions],
        "thresholds": thresholds.to_dict("records"),
        "weight_change": dict(norms),
        "layers": _layers(layers),
        "context": dict(context),
    }


def markdown(made: Mapping[str, Any], points: pd.DataFrame, rule: Mapping[str, Any]) -> str:
    """The summary as markdown: answer, search, hypotheses, checks, mixing, limits, table of every recipe."""
    parts = [f"# {made['context']['title']}", made["answer"], "## The search", _search(made, rule)]
    parts += ["## Hypotheses", _hypotheses(made["claims"]), "## Checks and known traps", _checks(made["claims"])]
    if made["thresholds"]:
        parts += ["## From which share on a mixture keeps the geometry", _thresholds(made["thresholds"])]
    if made["weight_change"]:
        parts += ["## How far the weights moved", _norms(made["weight_change"])]
    if made["layers"]:
        parts += ["## Passing recipes over layers", _sweep(made["layers"])]
    parts += ["## What this cannot say", "\n".join(f"- {c}" for c in made["caveats"])]
    return "\n\n".join([*parts, "## Every recipe", _table(points)]) + "\n"


def _answer(points: pd.DataFrame, decisions: Sequence[Mapping], claims: Sequence[Mapping], context: Mapping) -> str:
    base = points[points["role"] == "untrained"].iloc[0]
    passing = [name for record in decisions for name in record["passing"]]
    recipes = sum(len(record["recipes"]) for record in decisions)
    by = {outcome: [c["claim"] for c in claims if c["verdict"] == outcome] for outcome in (SUPPORTED, NOT_SUPPORTED)}
    baseline = points[(points["role"] == "baseline") & (points["run"] == context["plain"])].iloc[:1]
    text = (
        f"{len(decisions)} of {len(PHASE_WORDS)} phases were run, with {_count(recipes, 'recipe')} (a checkpoint "
        f"counts as one) and {_count(len(context['seeds']), 'seed')}. "
    )
    for _, row in baseline.iterrows():
        text += (
            f"The untrained model has M1 {base['m1']:.3f}; the baseline {row['run']} ends at {row['m1']:.3f} "
            f"({row['m1_low']:.3f} to {row['m1_high']:.3f}). "
        )
    if passing:
        shown = ", ".join(passing[:6]) + (f" and {len(passing) - 6} more" if len(passing) > 6 else "")
        verb = "meets" if len(passing) == 1 else "meet"
        text += f"{_count(len(passing), 'recipe')} {verb} every criterion of the rule by point estimates: {shown}. "
    else:
        text += "No recipe meets every criterion of the rule. "
    for outcome, names in by.items():
        if names:
            text += f"{outcome.capitalize()} by their intervals: {', '.join(names)}. "
    rest = [c["claim"] for c in claims if c["claim"] not in [*by[SUPPORTED], *by[NOT_SUPPORTED]]]
    if rest:
        text += f"Not decidable at this N: {', '.join(rest)}."
    return text.strip()


def _search(made: Mapping, rule: Mapping) -> str:
    asked = "; ".join(f"{words} {rule[name]:g}" for name, (*_, words) in CRITERIA.items() if rule.get(name) is not None)
    lines = [
        f"A recipe passes if it meets, with every seed: {asked} (layer {rule['layer']}, "
        f"{rule['method'].replace('_', ' ')}). The search escalates from phase to phase and stops at the first pass"
        + (", but all phases were asked for here." if made["context"]["all_phases"] else "."),
        "",
        "| phase | what it tries | verdict |",
        "|---|---|---|",
    ]
    lines += [f"| {d['phase']} | {PHASE_WORDS.get(d['phase'], '')} | {d['reason']} |" for d in made["decisions"]]
    return "\n".join(lines)


def _hypotheses(claims: Sequence[Mapping]) -> str:
    lines = []
    for row in claims:
        if row["claim"] in STATEMENTS:
            lines.append(
                f"- **{row['claim'].replace('_', ' ')}: {row['verdict']}.** {row['statement']} Criterion: "
                f"{row['criterion']}. Evidence: {row['evidence']}{would_decide(row)}"
            )
    return "\n".join(lines)


def _checks(claims: Sequence[Mapping]) -> str:
    return "\n".join(
        f"- **{row['claim'][0].upper()}{row['claim'][1:]}: {row['verdict']}.** {row['text']}{would_decide(row)}"
        for row in claims
        if row["claim"] not in STATEMENTS
    )


def _thresholds(rows: Sequence[Mapping]) -> str:
    lines = [
        "| narrow data | broad data | tested shares | threshold | 95 % | draws that reach it |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = "not reached" if row["share"] is None or row["share"] != row["share"] else f"{row['share']:.1%}"
        ends = ["–" if e is None or e != e else f"{e:.1%}" for e in (row["low"], row["high"])]
        tested = ", ".join(f"{100 * s:.3g}%" for s in row["shares"] if s)
        unit = {"tokens": "raw text, by tokens", "rows": "instructions, by rows"}.get(row["unit"], row["unit"])
        lines.append(
            f"| {row['narrow']} | {unit} | {tested} | {share} | {ends[0]} to {ends[1]} | {row['reached']:.0%} |"
        )
    return (
        "\n".join(lines)
        + "\n\nRising fit without a functional form; an end of the interval beyond the tested shares is left open."
    )


def _norms(norms: Mapping[str, Mapping]) -> str:
    lines = ["| run | method | global norm of the weight change | projections alone |", "|---|---|---|---|"]
    for name, row in norms.items():
        alone = "–" if row["projections"] is None else f"{row['projections']:.3g}"
        lines.append(f"| {name} | {row['method']} | {row['global']:.3g} | {alone} |")
    return "\n".join(lines)


def _layers(layers: pd.DataFrame) -> list[dict[str, Any]]:
    """M1, share kept and likeness of every swept model by method and layer."""
    wanted = layers[layers["quantity"].isin(["m1", "kept", "similarity"])]
    table = wanted.pivot_table(index=["run", "checkpoint", "method", "layer"], columns="quantity", values="value")
    return table.reset_index().to_dict("records") if len(wanted) else []


def _sweep(rows: Sequence[Mapping]) -> str:
    lines = ["| recipe | method | layer | M1 | kept | likeness |", "|---|---|---|---|---|---|"]
    for row in rows:
        name = row["run"] if row["checkpoint"] == "final" else f"{row['run']}@{row['checkpoint']}"
        numbers = " | ".join(f"{row[q]:.3f}" for q in ("m1", "kept", "similarity"))
        lines.append(f"| {name} | {row['method'].replace('_', ' ')} | {row['layer']} | {numbers} |")
    return "\n".join(lines)


def _caveats(points: pd.DataFrame, context: Mapping) -> list[str]:
    found = []
    if len(context["seeds"]) == 1:
        found.append(
            "One seed: every interval holds for these training runs (questions, personas, held-out rows) and not for "
            "the recipes; two runs of one recipe may differ by more."
        )
    if context["model"] in SMALL:
        found += [
            "The small world is a model of 5.5 million parameters that knows little beyond its own personas. Its "
            "untrained M1, its layers and the size of its collapse have no counterpart in a 7B chat model, so that the "
            "published limits say nothing here and the rule is relative to its own step 0.",
            "Bad advice is recognised by exact templates of the small world's own task: no judgement of alignment. "
            "The misalignment questions, and alignment and coherence as judged, are not measured at this scale.",
            "Learning rates, steps and rows are shrunk with the model; a phase that passes here does not make the same "
            "phase likelier to pass at paper scale.",
        ]
    elif context["judge"] is None:
        found.append("No judge was configured: alignment and coherence were not measured.")
    if context["schedule"] == "one":
        found.append(
            "The step dose is read from checkpoints of one schedule, whose learning rate has not yet decayed at early "
            "steps: it bounds what stopping early does, and a run planned for those steps may differ."
        )
    found.append(
        "M1 at the last prompt token is one layer and one way to read a persona; it is uncentred, and steering shifts "
        "all personas alike, so its M1 moves mechanically: read its spread and its likeness to the untrained model."
    )
    if (points["unit"] == "rows").any() and (points["narrow"] == "tulu").any():
        found.append(
            "Instructions mixed into the instruction slice come from the same distribution; that arm shows what fewer "
            "narrow rows do, and only the arm on bad advice can show rehearsal."
        )
    found.append("Every comparison between recipes uses the same questions, personas and held-out rows, once each.")
    return found


def _table(points: pd.DataFrame) -> str:
    lines = [
        "| recipe | role | M1 | kept | spread | offset | likeness | CKA | eff. rank | probe | loss ratio | learnt |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for _, row in points.sort_values(["phase", "group", "run", "step"], na_position="first").iterrows():
        name = row["run"] if row["checkpoint"] in ("final", "step0") else f"{row['run']}@{row['checkpoint']}"
        cells = [f"{row['m1']:.3f}", _pair(row, "kept"), *(f"{row[q]:.2f}" for q in ("spread_ratio", "offset_ratio"))]
        cells += [f"{row[q]:.2f}" for q in ("similarity", "cka")] + [f"{row['effective_rank']:.1f}"]
        cells += [f"{row['decodability']:.0%}", _plain(row["ratio"]), _plain(row["learnt"])]
        lines.append(f"| {name} | {row['role']} | {' | '.join(cells)} |")
    return (
        "\n".join(lines)
        + "\n\nKept: share of the untrained model's distance from collapse, 95 %. Spread and offset: over "
        "the untrained model's. Likeness: rank correlation of the distances between personas. Probe: "
        "held-out questions whose persona a linear probe names. Loss ratio: held-out loss over the "
        "baseline's. Learnt: share of the baseline's loss reduction on the recipe's own narrow set."
    )


def _pair(row: Mapping, name: str) -> str:
    return f"{row[name]:.2f} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"


def _plain(value: float) -> str:
    return "–" if value is None or value != value else f"{value:.2f}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
