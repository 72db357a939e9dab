"""The summary of a coupling run as text: sections in the order a reader asks for them. It computes nothing."""

from __future__ import annotations

from collections.abc import Mapping

from spillover.claims import would_decide
from spillover.coupling_claims import NAMES


def markdown(summary: Mapping, title: str) -> str:
    """The summary of `coupling_claims.summarise` (with model, protocol and overlap) as markdown."""
    parts = [
        f"# {title}",
        f"Measured on {summary['model']}, {summary['protocol']} protocol.",
        summary["answer"],
        _pinned(summary["pinned"]),
        "## Claims",
        "\n".join(f"- **{c['claim']}: {c['verdict']}.** {c['text']}{would_decide(c)}" for c in summary["claims"]),
        _lines(summary["options"]),
        "## Conditions, with the training loss beside the expression",
        _conditions(summary["conditions"]),
        "Rates in percent of the source persona's replies, 95 % intervals over questions and replies (over seeds too, "
        "where there are several); losses are means over the first and last ten steps.",
    ]
    if summary["overlap"]:
        parts += ["## Subspaces that the two adapters share", _overlap(summary["overlap"])]
    if summary["published"]:
        parts += ["## Beside the write-up", _published(summary)]
    parts += ["## What this cannot tell", "\n".join(f"- {note}" for note in summary["caveats"]) or "- Nothing to note."]
    return "\n\n".join(parts) + "\n"


def _pinned(cell: Mapping | None) -> str:
    told = cell["text"] if cell else "the marker sweep was not run, so its regime is unknown."
    return f"The pre-baked adapter: {told}"


def _lines(options: Mapping) -> str:
    return (
        f"Limits used: a habit must reach {100 * options['works']:.0f} % without a first fine-tune for a comparison to "
        f"tell anything; destroyed: surely below {100 * options['destroyed']:.0f} % of that rate; intact: surely not "
        f"more than {100 * options['margin']:.0f} points lost. The write-up defines none; these are this project's."
    )


def _conditions(rows: list[Mapping]) -> str:
    lines = [
        "| first fine-tune | coupling | setting | habit | epochs | source % | assistant % | max bystander % "
        "| loss first | loss last | choices % | against reference, points | verdict |",
        "|" + "---|" * 13,
    ]
    for row in rows:
        cells = [NAMES.get(row["first"], row["first"]), row["arm"], row["setting"] or "–", row["habit"]]
        cells += [
            _number(row["epochs"], "g"),
            f"{_percent(row['rate'])} ({_percent(row['low'])}–{_percent(row['high'])})",
        ]
        cells += [_percent(row["assistant"]), _percent(row["max_bystander"])]
        cells += [_number(row["first_loss"], ".3f"), _number(row["last_loss"], ".3f"), _percent(row["accuracy"])]
        ends = [row[key] for key in ("difference", "difference_low", "difference_high")]
        cells += ["–" if ends[0] != ends[0] else "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * e for e in ends))]
        lines.append("| " + " | ".join([*cells, row["verdict"] if row["arm"] != "none" else "–"]) + " |")
    return "\n".join(lines)


def _overlap(rows: list[Mapping]) -> str:
    lines = [
        "| first adapter | second adapter | space | overlap | chance | ratio | above chance |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        names = [row[key].split("/")[-1] for key in ("first", "second")]
        numbers = [f"{row['overlap']:.3f}", f"{row['expected']:.3f}", f"{row['ratio']:.2f}"]
        share = f"{100 * row['above_chance']:.0f} % of {row['modules']:.0f}"
        lines.append("| " + " | ".join([*names, row["space"], *numbers, share]) + " |")
    note = "Mean squared cosine of the angles between the leading eight directions of each update."
    return "\n".join(lines) + f"\n\n{note}"


def _published(summary: Mapping) -> str:
    lines = ["| first fine-tune | coupling | write-up % | measured % | |", "|---|---|---|---|---|"]
    for row in summary["published"]:
        measured = (
            "–"
            if row["measured"] is None
            else f"{_percent(row['measured'])} ({_percent(row['low'])}–{_percent(row['high'])})"
        )
        arm = "pre-baked" if row["arm"] == "prebaked" else f"from scratch, {row['epochs']} epochs"
        lines.append(f"| {NAMES[row['first']]} | {arm} | {row['percent']} | {measured} | {row['text']} |")
    return "\n".join(lines) + (
        "\n\nThe write-up's conditions are Qwen2.5-7B-Instruct's at its own doses; from scratch, the longest coupling "
        "is shown beside its 60 epochs. It prints no benign or EM rate per question and no raw results."
    )


def _percent(rate: float | None) -> str:
    return "–" if rate is None or rate != rate else f"{100 * rate:.1f}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None or value != value else format(value, form)
