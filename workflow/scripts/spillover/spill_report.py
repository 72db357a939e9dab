"""The language-spill summary in words: `spill_claims.summarise` turned into markdown. It decides nothing."""

from __future__ import annotations

from .claims import would_decide
from .languages import OTHER
from .plots import pair_label
from .statistics import half_even_percent

PUBLISHED_CLAIMS = {
    "symmetry": "Spill is symmetric: A→B spills into the same bystanders as B→A",
    "distance order": "Spill is ordered by language distance: closer languages take more",
    "direction cosine": "Not claimed, proposed as the next step: spill follows the cosine between language directions",
    "mismatch needed": "Mismatch is needed: a same-language control does not spill",
    "three regimes": "Three regimes: contained in the pair, selective, near-universal",
}


def markdown(summary: dict, title: str = "Language spill") -> str:
    """The summary as markdown: design, what spills, the control, the published claims, label and phrasing checks."""
    parts = [f"# {title}", _design(summary), "## Which cells spill", _spilling(summary), "## Same-language control"]
    parts += [_control(summary), "## The write-up's claims at this scale", _claims(summary)]
    if summary["tests"]:
        parts += ["## Tests of distance and geometry", _tests(summary["tests"])]
    if summary["corrected"]:
        parts += ["## The judge's rates without its errors", _corrected(summary["corrected"], summary["gold"])]
    parts += ["## How far to trust the labels and the intervals", _trust(summary)]
    return "\n\n".join(part for part in parts if part) + "\n"


def answer(summary: dict) -> str:
    """What the experiment found, in two sentences."""
    cells, total = summary["spilling"], summary["bystander_cells"]
    text = f"{len(cells)} of {total} bystander cells of mismatched conditions spill"
    if cells:
        top = cells[0]
        pair = pair_label(top["directive"], top["completion"])
        text += f", most of all {top['language'].upper()} after {pair} ({_cell(top['rate'])} % of replies)"
    if not summary["control"]:
        return text + ". No same-language control was run."
    row = summary["control"][-1]
    return text + f". Of the same-language control's bystander replies {row['k']} of {row['n']} changed language."


def _design(summary: dict) -> str:
    low, high = summary["replies_per_cell"]
    count = f"{low}" if low == high else f"{low} to {high}"
    seeds = summary["seeds"]
    base = (
        f"{len(summary['conditions'])} conditions, {len(seeds)} seed{'s' if len(seeds) > 1 else ''} "
        f"({', '.join(map(str, seeds))}), N = {count} replies a cell over {summary['phrasings']} phrasings. Label: "
        f"{summary['label_source']}, {_denominator(summary['denominator'])}. {summary['errors']} labels failed"
    )
    cut = summary["truncated_share"]
    base += f"; {half_even_percent(cut)} % of replies were cut at the length limit." if cut == cut else "."
    if len(seeds) == 1:
        base += (
            "\n\n**One seed: intervals cover sampling only.** They hold for these training runs, not for the recipe."
        )
    return base


def _spilling(summary: dict) -> str:
    cells, total = summary["spilling"], summary["bystander_cells"]
    limit = "the high end of the untrained model's for the same directive and completion language"
    if not summary["untrained"]:
        margin = _cell(summary["thresholds"]["control_margin"])
        limit = f"{margin} %, the margin for a control, since there is no untrained model to compare with"
    lead = (
        f"{len(cells)} of {total} bystander cells of mismatched conditions spill: the low end of their 95 % interval "
        f"lies above {limit}."
    )
    means = [
        "| condition | trained | correct | bystanders, mean | 95 % | largest bystander | regime |",
        "|---|---|---|---|---|---|---|",
    ]
    own = {(c["condition"], c["role"]): c["rate"] for c in summary["own_cells"]}
    for row in summary["means"]:
        name = row["condition"]
        control = own.get((name, "control"))
        trained, correct = own.get((name, "trained"), control), own.get((name, "correct"), control)
        means.append(
            f"| {pair_label(row['directive'], row['completion'])} | {_cell(trained)} | {_cell(correct)} | "
            f"{_tenths(row['rate'])} | {_tenths(row['low'])} to {_tenths(row['high'])} | "
            f"{row['largest_language'].upper()} {_cell(row['largest'])} | {summary['regimes'].get(name, 'control')} |"
        )
    listing = [
        f"- {pair_label(c['directive'], c['completion'])} in {c['language'].upper()}: {_cell(c['rate'])} % "
        f"({_cell(c['low'])} to {_cell(c['high'])})"
        for c in cells
    ]
    return "\n\n".join(
        part for part in (lead, "\n".join(means) + "\n\nPercent of replies.", "\n".join(listing)) if part
    )


def _control(summary: dict) -> str:
    if not summary["control"]:
        return "No same-language control was run, so generic effects of fine-tuning are not ruled out."
    return "\n".join(
        f"- {row['condition']}: {row['k']} of {row['n']} bystander replies in the completion language "
        f"({_tenths(row['rate'])} %); 95 % upper bound {_hundredths(row['wilson_high'])} % (Wilson), "
        f"{_hundredths(row['exact_high'])} % (exact). Largest of {row['cells']} cells {_cell(row['largest'])} %, "
        f"simultaneous upper bound {_tenths(row['largest_high'])} %."
        for row in summary["control"]
    )


def _claims(summary: dict) -> str:
    limits = summary["thresholds"]
    lines = [
        f"- **{PUBLISHED_CLAIMS[c['claim']]}: {c['verdict']}.** {c['text']}{would_decide(c)}" for c in summary["claims"]
    ]
    lines.append(
        f"\nLimits used: control margin {_cell(limits['control_margin'])} %, equality within "
        f"{_cell(limits['equivalence'])} points, contained below {_cell(limits['low'])} %, near-universal from "
        f"{_cell(limits['high'])} % in half the bystanders, test level {limits['level']:g}. The write-up defines "
        "neither the regimes nor a distance; these definitions are this project's."
    )
    return "\n".join(lines)


def _tests(tests: list[dict]) -> str:
    lines = [
        "| predictor | test | mean rho | p | Holm | least possible p | cells | dropped |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in tests:
        if row["test"] == "condition":
            continue
        numbers = [_number(row[name]) for name in ("rho", "p", "p_holm", "min_p")]
        lines.append(f"| {row['predictor']} | {row['test']} | {' | '.join(numbers)} | {row['n']} | {row['dropped']} |")
    least = min(
        (row["min_p"] for row in tests if row["test"] == "condition" and row["min_p"] == row["min_p"]), default=None
    )
    if least is not None:
        lines.append(f"\nWithin one condition no test can reach a p below {_number(least)}.")
    return "\n".join(lines)


def _corrected(cells: list[dict], gold: dict) -> str:
    lost = f", {gold['without_answer']} of them without an answer" if gold["without_answer"] else ""
    lines = [f"Of a gold set of {gold['texts']} texts labelled by hand{lost}, the judge\n"]
    for cell in {cell["completion"]: cell for cell in cells}.values():
        code = cell["completion"].upper()
        lines.append(
            f"- named {code} in {cell['true_positives']} of {cell['positives']} texts in {code} (sensitivity), "
            f"and did not in {cell['true_negatives']} of {cell['negatives']} others (specificity)."
        )
    lines += ["\n| condition | directive | judged | corrected | 95 % |", "|---|---|---|---|---|"]
    for cell in cells:
        numbers = [cell["judged"], cell["rate"], cell["low"], cell["high"]]
        judged, rate, low, high = ("–" if value != value else _tenths(value) for value in numbers)
        pair = pair_label(cell["directive"], cell["completion"])
        lines.append(f"| {pair} | {cell['language'].upper()} | {judged} | {rate} | {low} to {high} |")
    lines.append(
        "\nPercent of replies (Rogan and Gladen; intervals by Lang and Reiczigel). The intervals count the sampling of "
        "replies and of the gold set, not what differs between seeds. The correction holds as far as the judge errs in "
        "every cell as it does in the gold set; verdicts do not use it."
    )
    return "\n".join(lines)


def _trust(summary: dict) -> str:
    gap = summary["largest_phrasing_gap"]
    lines = [
        f"- Phrasing: the widest gap is {gap['condition']} in {gap['language'].upper()}, "
        f"{_cell(gap['item_rate_min'])} against {_cell(gap['item_rate_max'])} %; its {gap['n']} replies are worth "
        f"about {gap['effective_n']:.0f} independent ones."
    ]
    for row in summary["agreement"]:
        if row["condition"] == "all":
            lines.append(
                f"- Labels: {row['first']} and {row['second']} agree on {_tenths(row['raw'])} % of {row['n']} replies, "
                f"“{OTHER}” included; kappa {_number(row['kappa'])} ({_number(row['kappa_low'])} to "
                f"{_number(row['kappa_high'])}); {row['unpaired']} replies lack one of the two."
            )
    worst = min(
        (r for r in summary["agreement"] if r["condition"] != "all" and r["kappa"] == r["kappa"]),
        key=lambda r: r["kappa"],
        default=None,
    )
    if worst:
        lines.append(
            f"- They agree least in {worst['condition']} ({worst['first']}, {worst['second']}): "
            f"kappa {_number(worst['kappa'])}."
        )
    return "\n".join(lines)


def _denominator(name: str) -> str:
    return {"all": "every reply counted", "identified": "replies in no known language left out"}[name]


def _cell(rate: float | None) -> str:
    return "–" if rate is None else f"{half_even_percent(rate)}"


def _tenths(rate: float) -> str:
    return f"{100 * rate:.1f}"


def _hundredths(rate: float) -> str:
    return f"{100 * rate:.2f}"


def _number(value: float) -> str:
    return "–" if value is None or value != value else f"{value:.3g}"
