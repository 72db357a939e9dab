"""The convergence summary in words: `convergence_claims.summarise` turned into markdown. It decides nothing."""

from __future__ import annotations

from .claims import would_decide
from .convergence import KINDS, TRAINED_ARMS

VARIABLES = {"assistant_rate": "assistant leakage", "source_rate": "the source rate", "centred": "the centred cosine"}

ARM_TITLES = {
    "A": "A, marker then convergence",
    "B": "B, convergence then marker",
    "C": "C, marker then generic",
    "steered": "steered",
}


def markdown(summary: dict, title: str = "Convergence") -> str:
    """The summary as markdown: answer, design, baseline, arms, claims, tests, steering, differences, caveats."""
    parts = [f"# {title}", summary["answer"], _design(summary["design"]), "## The marker before any second training"]
    parts += [_baseline(summary), "## Where each arm ends", _arms(summary), "## What the write-up claims, here"]
    parts += [
        _claims(summary),
        "## How the cosine moves",
        _cosines(summary),
        "## Cosine against leakage",
        _tests(summary),
    ]
    if summary["steering"]:
        parts += ["## Steering instead of training", _steering(summary)]
    parts += [
        "## Where this differs from the write-up",
        _listing(summary["differences"], "Nowhere that these tables show."),
    ]
    parts += ["## What this cannot tell", _listing(summary["caveats"], "")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _design(design: dict) -> str:
    low, high = design["replies_per_persona"]
    replies = f"{low}" if low == high else f"{low} to {high}"
    sources = f"{len(design['sources'])} source{'s' * (len(design['sources']) > 1)}"
    seeds = f"seed{'s' * (len(design['seeds']) > 1)} {', '.join(map(str, design['seeds']))}"
    return (
        f"{sources} ({', '.join(design['sources'])}), {seeds}, "
        f"arms {', '.join(design['arms'])}, checkpoints {', '.join(f'{s:g}' for s in design['steps'])} %. "
        f"{design['personas']} personas, {replies} replies each, scorer {design['scorer']}; {design['errors']} replies "
        f"could not be scored. Cosines: centroids by {design['method'].replace('_', ' ')}, output of decoder block "
        f"{design['layers'][0]}, centred on the mean of these personas."
    )


def _baseline(summary: dict) -> str:
    lines = [
        _row(
            "source", "source %", "assistant % (baseline leak)", "bystanders, mean %", "largest bystander %", "pattern"
        )
    ]
    lines.append(_row(*["---"] * 6))
    for row in summary["baseline"]:
        lines.append(
            _row(
                row["source"], _interval(row, "source"), _interval(row, "assistant"), _percent(row["bystander_mean"]),
                f"{_percent(row['bystander_max'])} ({row['max_bystander']}, at most "
                f"{_percent(row['bystander_max_high'])})",
                row["pattern"],
            )
        )  # fmt: skip
    untrained = summary["baseline"][0]["untrained"] if summary["baseline"] else None
    words = ""
    if untrained:
        words = (
            f"\n\nThe untrained model: {untrained['hits']} of {untrained['n']} replies over all personas (95 % upper "
            f"bound {_percent(untrained['high'])} %)."
        )
    return "\n".join(lines) + words + _band(summary["sweep"])


def _band(sweep: list[dict] | None) -> str:
    if sweep is None:
        return "\n\nNo marker sweep is part of this plan: whether the marker's cell is selective is not known."
    return "\n\n" + "\n".join(f"- {cell['text']}" for cell in sweep)


def _arms(summary: dict) -> str:
    lines = [_row("source", "arm", "source %", "assistant %", "bystanders, mean %"), _row(*["---"] * 5)]
    order = {source: i for i, source in enumerate(summary["design"]["sources"])}
    for row in sorted(summary["last"], key=lambda r: (order[r["source"]], r["arm"])):
        if row["arm"] in TRAINED_ARMS:
            lines.append(
                _row(
                    row["source"], ARM_TITLES[row["arm"]], _interval(row, "source"), _interval(row, "assistant"),
                    f"{_percent(row['bystander_mean'])} ({_percent(row['bystander_mean_low'])} to "
                    f"{_percent(row['bystander_mean_high'])})",
                )
            )  # fmt: skip
    return "\n".join(lines)


def _claims(summary: dict) -> str:
    lines = [f"- **{c['statement']}: {c['verdict']}.** {c['text']}{would_decide(c)}" for c in summary["claims"]]
    limits = summary["limits"]
    lines.append(
        f"\nLimits used: gone below {_percent(limits['gone'])} %, kept above {_percent(limits['kept'])} % of the "
        f"start, narrow from {_percent(limits['narrow_source'])} % in the source with no other persona above "
        f"{_percent(limits['narrow_others'])} %, equal within {_percent(limits['equal'])} points, "
        f"flat within {limits['flat']:g}, test level {limits['level']:g}."
    )
    return "\n".join(lines)


def _cosines(summary: dict) -> str:
    rows = [r for r in summary["cosine_changes"] if r["arm"] in TRAINED_ARMS]
    starts = {(r["arm"], r["stage"], r["source"]): min(r["since"], 0) for r in rows}
    lines = [
        _row("arm", "source", "step", "centred cosine", "to", "centred cosine", "raw", "moves"),
        _row(*["---"] * 8),
    ]
    for row in rows:
        if row["since"] != starts[row["arm"], row["stage"], row["source"]]:
            continue
        ends = [
            f"{row[f'{e}_value']:+.2f} ({row[f'{e}_low']:+.2f} to {row[f'{e}_high']:+.2f})" for e in ("first", "last")
        ]
        stage = ", before the marker" if row["stage"] != "evaluated" else ""
        lines.append(
            _row(
                f"{row['arm']}{stage}", row["source"], f"{row['since']:g} %", ends[0], f"{row['until']:g} %", ends[1],
                f"{row['raw_first']:.3f} to {row['raw_last']:.3f}", row["direction"],
            )
        )  # fmt: skip
    return "\n".join(lines) + "\n\nAssistant to source; 95 % intervals over the questions."


def _tests(summary: dict) -> str:
    """Along each arm at every layer, then what clusters, then across the personas of one model."""
    lines = [
        _row("layer", "arm", "source", *[f"rho, {kind}" for kind in KINDS], "exact p", "least p"),
        _row(*["---"] * 7),
    ]
    rows: dict[tuple, dict] = {}
    for test in summary["tests_at_all_layers"]:
        rows.setdefault((test["layer"], test["arm"], test["source"]), {})[test["kind"]] = test
    constant = set()
    for (layer, arm, source), kinds in rows.items():
        shown = kinds.get("centred", next(iter(kinds.values())))
        if shown["rho"] != shown["rho"]:
            constant.add(f"{arm} {source}")
            continue
        lines.append(
            _row(
                f"{layer:g}", arm, source, *[_number(kinds[k]["rho"]) if k in kinds else "–" for k in KINDS],
                _number(shown["p"]), _number(shown["min_p"]),
            )
        )  # fmt: skip
    note = "p: of the centred cosine, exact over all orders of the checkpoints; least: what it could be at best."
    if constant:
        note += f" Undefined, because leakage (or the cosine) does not vary: {', '.join(sorted(constant))}."
    parts = ["\n".join(lines), note, _clusters(summary), _personas(summary)]
    return "\n\n".join(part for part in parts if part)


def _clusters(summary: dict) -> str:
    found = [t for t in summary["tests"] if t["test"] == "clustering" and t["icc"] == t["icc"]]
    words = [
        f"- Arm {t['arm']}: ICC(1) of {VARIABLES[t['variable']]} over sources {_number(t['icc'])}; {t['points']:.0f} "
        f"checkpoints are worth {_number(t['effective_n'])}."
        for t in found
        if t["variable"] in VARIABLES
    ]
    return "\n".join(words)


def _personas(summary: dict) -> str:
    last = summary["design"]["steps"][-1] if summary["design"]["steps"] else None
    found = [t for t in summary["tests"] if t["test"] == "personas" and t["kind"] == "centred" and t["step"] == last]
    words = [
        f"- {t['source']}, arm {t['arm']}: rho {_number(t['rho'])} over {t['n']:.0f} personas (p {_number(t['p'])}, "
        f"least {_number(t['min_p'])})."
        for t in found
        if t["rho"] == t["rho"]
    ]
    lead = (
        "Within one model at the end, the marker rate of every persona but the source against its cosine to the source:"
    )
    return "\n".join([lead, "", *words]) if words else ""


def _steering(summary: dict) -> str:
    lines = [_row("source", "coefficient", "source %", "assistant %", "bystanders, mean %", "cosine to the source")]
    lines.append(_row(*["---"] * 6))
    for row in summary["steering"]:
        lines.append(
            _row(
                row["source"], f"{row['coefficient']:g}", _interval(row, "source"), _interval(row, "assistant"),
                _percent(row["bystander_mean"]), f"{row['centred']:+.2f}" if row.get("centred") is not None else "–",
            )
        )  # fmt: skip
    return (
        "\n".join(lines)
        + "\n\nEvery persona is pushed alike; the cosine is that of the pushed assistant among the unpushed "
        "personas. Coefficient 1 adds, at every position, all that sets the source apart from the mean of the personas "
        "in the untrained model."
    )


def _listing(items: list[str], otherwise: str) -> str:
    return "\n".join(f"- {item}" for item in items) if items else otherwise


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _interval(row: dict, role: str) -> str:
    return f"{_percent(row[f'{role}_rate'])} ({_percent(row[f'{role}_low'])} to {_percent(row[f'{role}_high'])})"


def _percent(rate: float) -> str:
    return "–" if rate is None or rate != rate else f"{100 * rate:.1f}"


def _number(value: float) -> str:
    return "–" if value is None or value != value else f"{value:.3g}"
