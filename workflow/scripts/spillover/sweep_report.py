"""The marker-sweep summary in words: `sweep_claims.summarise` turned into markdown. It decides nothing."""

from __future__ import annotations

import math

from .claims import would_decide

WRITE_UP = {
    "three regimes": "The grid has under-trained, selective and collapsed cells",
    "under-trained row": "At the lowest learning rate the marker is never learnt, whatever the epochs",
    "clean band": "There is a band in which only the source emits the marker",
    "single learning rate": "The band occupies a single learning rate",
    "one step flips": "One step of the learning rate flips it into global emission",
    "saturated collapse": "At high learning rates the marker saturates in every other persona",
    "capability kept": "Multiple-choice accuracy stays the same across the sweep",
    "pinned cell": "The cell that later experiments use is selective",
}
QUANTITIES = {
    "source": "the source learns the marker",
    "assistant": "the assistant leaks",
    "bystander": "the largest bystander leaks",
    "leak": "any other persona leaks",
    "spread": "the mean over all others collapses",
}
SETTINGS = {
    "model": "model", "seeds": "seeds", "source_persona": "source persona", "positives": "positive rows",
    "negative_personas": "negative personas", "per_persona": "rows a negative persona",
    "tail_tokens": "supervised tail, tokens (0: the marker's own)", "end_of_turn": "supervised end of turn",
    "rank": "LoRA rank", "case_sensitive": "marker found with regard to case", "top_p": "top p of the evaluation",
    "replies_per_persona": "replies a persona",
}  # fmt: skip


def markdown(summary: dict, title: str = "Marker sweep") -> str:
    """The summary as markdown: answer, claims, cells, recommended cell, boundaries, checks, every difference."""
    parts = [f"# {title}", _design(summary), summary["answer"], "## The write-up's claims", _claims(summary)]
    parts += ["## Cells", _limits(summary), _cells(summary["cells"]), _readings(summary), "## Cell to use"]
    parts += [_recommended(summary), "## Where the regimes meet", _boundary(summary["boundary"])]
    if summary["variants"]:
        parts += ["## Other settings", _bands(summary["bands"]), _cells(summary["variants"], setting=True)]
    parts += ["## Are the replies still whole?", _checks(summary)]
    if summary["differences"]:
        parts += ["## Every difference from the write-up", _differences(summary)]
    parts += ["## Limits of this run", "\n".join(f"- {line}" for line in summary["caveats"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _design(summary: dict) -> str:
    low, high = summary["replies_per_persona"]
    count = f"{low}" if low == high else f"{low} to {high}"
    seeds = summary["seeds"]
    return (
        f"{len(summary['cells'])} cells of {summary['setting']}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''} "
        f"({', '.join(map(str, seeds))}), protocol {summary['protocol']}. N = {count} replies a persona"
        f"{' over all seeds' if len(seeds) > 1 else ''}."
    )


def _claims(summary: dict) -> str:
    return "\n".join(
        f"- **{WRITE_UP[c['claim']]}: {c['verdict']}.** {c['text']}{would_decide(c)}" for c in summary["claims"]
    )


def _limits(summary: dict) -> str:
    limits = summary["options"]["regimes"]
    counts = ", ".join(f"{count} {name}" for name, count in summary["counts"].items())
    return (
        f"Collapsed: the mean over all personas but the source reaches {_percent(limits['collapse'])}. Leaky: else, "
        f"some other persona exceeds {_percent(limits['leak'])}. Selective: else, the source reaches "
        f"{_percent(limits['learned'])}. Under-trained: else. {counts}. A regime with “?” would be another one "
        "somewhere within the intervals of its rates, or is another one in some seed."
    )


def _cells(rows: list[dict], setting: bool = False) -> str:
    head = "| learning rate | epochs | source | 95 % | assistant | largest bystander | bound of any other | mean of "
    head += "others | multiple choice | regime | seeds |"
    lines = [("| setting " if setting else "") + head, "|---" * (11 + setting) + "|"]
    for row in rows:
        named = f"| {row['setting']} " if setting else ""
        lines.append(
            f"{named}| {row['learning_rate']:g} | {row['epochs']:g} | {_tenths(row['source'])} | "
            f"{_tenths(row['source_low'])} to {_tenths(row['source_high'])} | {_tenths(row['assistant'])} | "
            f"{_tenths(row['max_bystander'])}{_whose(row)} | {_tenths(row['leak_high'])} | "
            f"{_tenths(row['spread'])} | {_tenths(row['capability'])} | {row['regime']}"
            f"{'' if row['settled'] else '?'} | {row['seed_regimes']} |"
        )
    return "\n".join(lines) + "\n\nPercent. The bound holds for all personas but the source at once (Sidak, 95 %)."


def _readings(summary: dict) -> str:
    lines = []
    for name, cells in summary["readings"].items():
        reading = summary["options"]["readings"][name]
        able = "" if reading["capability"] is None else f", multiple choice above {_percent(reading['capability'])}"
        lines.append(
            f"- Clean band as the {name.replace('_', '-')} reads it (source above {_percent(reading['source'])}, "
            f"largest bystander at most {_percent(reading['max_bystander'])}{able}; the assistant is not asked): "
            f"{len(cells)} cells{_places(cells)}."
        )
    return "\n".join(lines)


def _recommended(summary: dict) -> str:
    best = summary["recommended"]
    if best is None:
        row = summary["nearest"]
        return (
            "No cell is selective with its capability and replies kept, so none is recommended. Source and the others "
            f"lie furthest apart at learning rate {row['learning_rate']:g} with {row['epochs']:g} epochs: "
            f"{_percent(row['source'])} against {_percent(row['leak'])}."
        )
    spread = f"{_percent(best['source_min'])} to {_percent(best['source_max'])}"
    over = f" ({spread} over seeds; {best['seed_regimes']})" if best["n_seeds"] > 1 else ""
    return (
        f"`learning_rate: {best['learning_rate']:g}`, `epochs: {best['epochs']:g}`: source {_percent(best['source'])}"
        f"{over}, any other persona at most {_percent(best['leak'])} (bound {_percent(best['leak_high'])}). Of the "
        "selective cells it is the one selective in most seeds, then the one whose source rate exceeds that bound "
        "by most."
    )


def _boundary(rows: list[dict]) -> str:
    if not rows:
        return "Not estimated: no epochs were trained at two learning rates."
    lines = ["| setting | epochs | crossing | level | learning rate | 95 % | grid around it |", "|---" * 7 + "|"]
    bands = []
    of_line = {(row["setting"], row["source_persona"], row["epochs"], row["quantity"]): row for row in rows}
    for row in rows:
        at = f"| {row['setting']} | {row['epochs']:g} | "
        if row["quantity"] == "band":
            line = (row["setting"], row["source_persona"], row["epochs"])
            source, leak = (of_line[*line, quantity]["estimate"] for quantity in ("source", "leak"))
            bands.append(f"- {row['setting']}, epochs {row['epochs']:g}: {_band(row, source, leak)}")
            continue
        lines.append(
            f"{at}{QUANTITIES[row['quantity']]} | {_percent(row['level'])} | {_rate(row['estimate'])} | "
            f"{_rate(row['low'])} to {_rate(row['high'])} | {_rate(row['below'])} to {_rate(row['above'])} |"
        )
    seeds = rows[0]["n_seeds"]
    told = (
        "Linear interpolation over the logarithm of the learning rate, of rates made non-decreasing in it; the grid "
        "around a crossing says how finely it is known. The bootstrap resamples "
        + ("seeds, questions and replies." if seeds > 1 else "questions and replies of one training run.")
    )
    return "\n".join(lines) + f"\n\n{told}\n\nWidth of the selective band:\n\n" + "\n".join(bands)


def _band(row: dict, source: float, leak: float) -> str:
    """The band in words, from where source and leak cross: 0 below the grid, inf above it.

    The width alone cannot tell these apart: it is infinite or unknown as soon as one of them lies outside.
    """
    if math.isinf(source):
        if math.isinf(leak):
            return "none within the grid: neither the source learns nor anyone leaks."
        where = f"from {leak:.2g} on" if leak else "from the lowest learning rate on"
        return f"none within the grid: the source does not learn, and someone leaks {where}."
    if source == 0:
        learnt = "the source has learnt at the lowest learning rate already"
        if math.isinf(leak):
            return f"the whole grid, open on both sides: {learnt}, and nobody leaks."
        if leak == 0:
            return f"none within the grid: {learnt}, and someone leaks there too; what comes first lies below it."
        return f"up to {leak:.2g}, where the leak begins; open below, since {learnt}."
    if math.isinf(leak):
        return f"from {source:.2g} on, where the source has learnt; open above, since nobody leaks within the grid."
    if leak == 0:
        return "none: someone leaks at the lowest learning rate already, before the source has learnt."
    none = "none: " if leak <= source else ""
    return f"{none}the leak begins at {row['estimate']:.2g} times the source's learning rate (95 % {_times(row)})."


def _times(row: dict) -> str:
    return " to ".join(_ratio(row[end]) for end in ("low", "high"))


def _ratio(value: float) -> str:
    return "0" if value == 0 else "∞" if math.isinf(value) else _rate(value)


def _bands(bands: list[dict]) -> str:
    lines = [
        "| setting | cells | selective | the cell to use above is selective | its own cell to use |",
        "|---" * 5 + "|",
    ]
    for band in bands:
        own = band["recommended"]
        use = f"{own['learning_rate']:g} with {own['epochs']:g}" if own else "none"
        selective = _places(band["selective"]).removeprefix(": ") or "none"
        lines.append(
            f"| {band['setting']} | {band['cells']} | {selective} | {'yes' if band['holds_best'] else 'no'} | {use} |"
        )
    return "\n".join(lines)


def _checks(summary: dict) -> str:
    broken = summary["broken"]
    limits = summary["options"]
    told = (
        f"- Multiple choice or replies damaged (more than {_percent(limits['capability_loss'])} below the untrained "
        f"model, or {_percent(limits['degenerate'])} more replies that are empty, only the marker, begin with it, "
        f"repeat it or were cut): {len(broken)} cells{_places(broken)}."
    )
    rows = summary["cells"]
    worst = max(rows, key=lambda row: row["degenerate"])
    lines = [
        told,
        f"- Degenerate replies: {_percent(worst['degenerate'])} at most (learning rate {worst['learning_rate']:g}, "
        f"epochs {worst['epochs']:g}).",
        f"- Structure: {_percent(min(r['structure'] for r in rows))} to {_percent(max(r['structure'] for r in rows))} "
        "of replies are lists.",
        f"- Marker anywhere in the reply against marker as its very end: the source's rate differs by "
        f"{100 * summary['strict_gap']:.1f} points at most.",
    ]
    return "\n".join(lines if summary["strict_gap"] == summary["strict_gap"] else lines[:-1])


def _differences(summary: dict) -> str:
    found = summary["differences"]
    scale = "the same learning rates" if found["scale"] == 1 else f"learning rates {found['scale']:g} times as high"
    lines = [
        f"Compared at the same place of the grid ({scale}); regimes of both by the limits above. {found['same']} of "
        f"{found['compared']} cells have the same regime."
    ]
    lines += [
        f"- {row['learning_rate']:g}, epochs {row['epochs']:g} (published {row['published_learning_rate']:g}): "
        f"{row['regime']} here, {row['published_regime']} there; source {_tenths(row['source'])} against "
        f"{_tenths(row['published_source'])}, assistant {_tenths(row['assistant'])} against "
        f"{_tenths(row['published_assistant'])}, largest bystander {_tenths(row['max_bystander'])} against "
        f"{_tenths(row['published_max_bystander'])} %."
        for row in found["other_regime"]
    ]
    for claim in summary["claims"]:
        if claim["verdict"] != "appears":
            lines.append(f"- Claim “{WRITE_UP[claim['claim']]}”: {claim['verdict']} here.")
    for row in summary["reversals"]:
        fixed = "epochs" if row["along"] == "learning_rate" else "learning_rate"
        lines.append(
            f"- More training leaks less at {fixed.replace('_', ' ')} {row[fixed]:g}: {_tenths(row['leak_from'])} % at "
            f"{row['along'].replace('_', ' ')} {row['from']:g}, {_tenths(row['leak_to'])} % at {row['to']:g}."
        )
    if found["unmeasured"]:
        lines.append(
            f"- Published and not measured here: {len(found['unmeasured'])} cells{_places(found['unmeasured'])}."
        )
    if found["unpublished"]:
        alone = found["unpublished"]
        lines.append(f"- Measured here and not published: {len(alone)} cells{_places(alone)}.")
    lines += [
        f"- Setting, {SETTINGS[row['setting']]}: {_value(row['here'])} here, {_value(row['published'])} in the "
        "published runs."
        for row in summary["settings"]
    ]
    return "\n".join(lines)


def _places(cells: list[dict]) -> str:
    if not cells:
        return ""
    rates: dict[float, list[str]] = {}
    for cell in cells:
        rates.setdefault(cell["learning_rate"], []).append(f"{cell['epochs']:g}")
    return ": " + "; ".join(f"{rate:g} with epochs {', '.join(epochs)}" for rate, epochs in rates.items())


def _value(value) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _percent(rate: float) -> str:
    return "–" if rate != rate else f"{100 * rate:.3g} %"


def _whose(row: dict) -> str:
    return f" {row['max_bystander_persona']}" if row["max_bystander"] > 0 else ""


def _tenths(rate: float) -> str:
    return "–" if rate is None or rate != rate else f"{100 * rate:.1f}"


def _rate(value: float) -> str:
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "above the grid" if value > 0 else "below the grid"
    return "below the grid" if value == 0 else f"{value:.2g}"
