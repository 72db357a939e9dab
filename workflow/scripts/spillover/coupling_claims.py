"""What a coupling run answers: every takeaway of the write-up and its five questions, each with numbers and a verdict.

Works on the tables of `coupling`, `adapter_overlap` and `persona_shift`; every word about an outcome follows from the
numbers. A claim "appears", "does not appear", is "undecided" or "not tested"; an undecided one says what would decide.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from spillover import coupling
from spillover.coupling import BASE, MARKER, PREBAKED, SCRATCH, select
from spillover.equivalence import (
    fewest_deciding,
    rows_for_agreement,
    rows_for_difference,
    rows_for_gap,
    rows_for_limit,
)

APPEARS, ABSENT, UNDECIDED, NOT_TESTED = "appears", "does not appear", "undecided", "not tested"
LOST = {"destroyed", "weakened"}
ALIKE = 5.0
"""Times the overlap that chance gives, above which two adapters were drawn alike: drawn apart, they stay near 1 however
they are trained."""
NAMES = {"em": "EM", "benign": "benign", BASE: "no first fine-tune"}


def summarise(
    table: pd.DataFrame, overlaps: pd.DataFrame, shifts: pd.DataFrame, options: Mapping, published: Mapping | None
) -> dict:
    """The summary as data: answer, claims, caveats, conditions, differences from the write-up.

    `table`: `coupling.compared`; `overlaps`: `coupling.summarised_overlaps`; `shifts`: `persona_shift.measure` with
    run, seed and layer; `published`: what the write-up printed.
    """
    main = select(table, habit=MARKER, setting="")
    claims = [
        destroyed_by_any(main, options),
        not_specific_to_em(main),
        prebaked_fails(main, options),
        epochs_do_not_help(main, options),
        loss_without_expression(main),
        policy_decides(table, options),
        concentrated_in_layers(table, options),
        scale_matters(table, options),
        disjoint_modules_rescue(table, overlaps),
        needs_lora(table),
        deeper_habits(table, options),
        source_vector_moved(main, shifts),
    ]
    return {
        "answer": answer(main),
        "claims": claims,
        "caveats": caveats(table, options) + alike_from_the_start(overlaps),
        "conditions": table.drop(columns=["items"], errors="ignore").to_dict("records"),
        "published": differences(main, published),
        "options": dict(options),
    }


def answer(main: pd.DataFrame) -> str:
    """One or two sentences on the experiment's question: first the verdicts, then the rates behind them."""
    coupled = main[(main["first"] != BASE) & (main["arm"] == SCRATCH)]
    if coupled.empty:
        return "No coupling after a first fine-tune was run."
    counts = coupled["verdict"].value_counts(sort=False)
    verdicts = ", ".join(f"{verdict} in {count}" for verdict, count in counts.items())
    told = [
        f"Taught from scratch after another fine-tune, the marker is {verdicts} of {len(coupled)} conditions: "
        f"{_against(main, coupled, SCRATCH)}"
    ]
    baked = main[(main["first"] != BASE) & (main["arm"] == PREBAKED)]
    if len(baked):
        told.append(f"The adapter made before: {_against(main, baked, PREBAKED)}")
    return " ".join(told)


def _against(main: pd.DataFrame, rows: pd.DataFrame, arm: str) -> str:
    parts = []
    for _, row in rows.iterrows():
        epochs = "" if pd.isna(row["epochs"]) else f", {row['epochs']:g} epochs"
        parts.append(f"{NAMES.get(row['first'], row['first'])}{epochs} {_rate(row)}")
    plain = [f"{_percent(row['rate'])} %" for _, row in select(main, first=BASE, arm=arm).iterrows()]
    return f"{'; '.join(parts)}; without another fine-tune {' and '.join(plain) or 'not run'}."


def destroyed_by_any(main: pd.DataFrame, options: Mapping) -> dict:
    """The write-up's title: any LoRA fine-tune destroys the coupling that follows."""
    rows = _tested(main)
    if rows.empty:
        return _claim(
            "any fine-tune destroys coupling", NOT_TESTED, "No coupling that works without a first fine-tune."
        )
    text = "; ".join(
        f"{_name(r)}: {_rate(r)} against {_percent(r['reference_rate'])} %, {_points(r)}, {r['verdict']}"
        for _, r in rows.iterrows()
    )
    worst = rows.loc[rows["difference"].idxmin()]
    needed = []
    for _, row in rows.iterrows():
        limit = options["destroyed"] * row["reference_rate"]
        needed.append((row["rate"] > limit, rows_for_limit(row["rate"], limit)))
    decides = fewest_deciding((n for _, n in needed), (n for above, n in needed if above))
    verdict = _all_destroyed(rows, options)
    return _claim("any fine-tune destroys coupling", verdict, text + ".", _estimate(worst), decides)


def not_specific_to_em(main: pd.DataFrame) -> dict:
    """Benign fine-tuning destroys as EM does."""
    name, texts, found, apart_at = "not specific to EM", [], [], []
    for arm, epochs in _arms(main):
        em, benign = (_one(main, first=f, arm=arm, epochs=epochs) for f in ("em", "benign"))
        if em is None or benign is None or "not tested" in (em["verdict"], benign["verdict"]):
            continue
        gap = coupling.difference(benign, em)
        found.append((em["verdict"], benign["verdict"], gap))
        apart_at.append(rows_for_difference(benign["rate"], em["rate"]))
        texts.append(f"{_arm(arm, epochs)}: benign {_rate(benign)}, EM {_rate(em)}, difference {_interval(gap)}")
    if not found:
        return _claim(name, NOT_TESTED, "EM and benign were not both run, or coupling fails without any fine-tune.")
    texts = "; ".join(texts)
    found = [pair for pair in found if LOST & set(pair[:2])]
    if not found:
        return _claim(name, NOT_TESTED, f"{texts}; neither loses the coupling, so there is nothing to be specific to.")
    both = all(em == benign == "destroyed" for em, benign, _ in found)
    apart = any(g["low"] > 0 or g["high"] < 0 for *_, g in found)
    verdict = APPEARS if both else ABSENT if apart else UNDECIDED
    largest = max((g for *_, g in found), key=lambda g: abs(g["estimate"]))
    return _claim(name, verdict, texts + ".", largest, fewest_deciding([], apart_at))


def prebaked_fails(main: pd.DataFrame, options: Mapping) -> dict:
    """An adapter that works on the untrained model fails on a fine-tuned one."""
    name = "pre-baked adapter fails"
    rows = _tested(main[main["arm"] == PREBAKED])
    if rows.empty:
        return _claim(name, NOT_TESTED, "No pre-baked adapter that works on the untrained model was applied.")
    text = "; ".join(
        f"{_name(r)}: {_rate(r)} against {_percent(r['reference_rate'])} %, {r['verdict']}" for _, r in rows.iterrows()
    )
    decides = fewest_deciding([], (coupling.rows_to_verdict(row, options) for _, row in rows.iterrows()))
    worst = rows.loc[rows["difference"].idxmin()]
    return _claim(name, _all_destroyed(rows, options), text + ".", _estimate(worst), decides)


def epochs_do_not_help(main: pd.DataFrame, options: Mapping) -> dict:
    """Longer coupling does not bring the habit back: a sure gain counts once the habit is no longer destroyed."""
    name, texts, gains = "more epochs do not help", [], []
    for first in _firsts(main):
        rows = select(main, first=first, arm=SCRATCH).sort_values("epochs")
        if len(rows) < 2:
            continue
        gain = coupling.difference(rows.iloc[-1], rows.iloc[0])
        ends = rows.iloc[-1]["rate"], rows.iloc[0]["rate"]
        gain |= {"before": rows.iloc[0]["verdict"], "verdict": rows.iloc[-1]["verdict"]}
        gain["small_at"] = rows_for_gap(*ends, options["margin"]) if gain["estimate"] < options["margin"] else None
        sure = gain["estimate"] > 0 and gain["verdict"] != "destroyed"
        gain["sure_at"] = [rows_for_difference(*ends)] if sure else []
        gains.append(gain)
        texts.append(
            f"{NAMES.get(first, first)}: {rows.iloc[0]['epochs']:g} epochs {_rate(rows.iloc[0])}, "
            f"{rows.iloc[-1]['epochs']:g} epochs {_rate(rows.iloc[-1])}, gain {_interval(gain)}"
        )
    if not gains:
        return _claim(name, NOT_TESTED, "Only one number of epochs was run after a first fine-tune.")
    gains = [g for g in gains if g["before"] in LOST]
    if not gains:
        return _claim(
            name, NOT_TESTED, "; ".join(texts) + "; the shorter coupling is not lost, so there is no ceiling."
        )
    verdict = APPEARS if all(g["high"] < options["margin"] for g in gains) else UNDECIDED
    verdict = ABSENT if any(g["low"] > 0 and g["verdict"] != "destroyed" for g in gains) else verdict
    most = max(gains, key=lambda g: g["estimate"])
    numbers = {key: most[key] for key in ("estimate", "low", "high")}
    decides = fewest_deciding((g["small_at"] for g in gains), (n for g in gains for n in g["sure_at"]))
    return _claim(name, verdict, "; ".join(texts) + ".", numbers, decides)


def loss_without_expression(main: pd.DataFrame) -> dict:
    """The write-up's puzzle: the training loss converges as without a first fine-tune, and the habit is not shown."""
    name = "loss converges without expression"
    rows = main[(main["arm"] == SCRATCH) & (main["first"] != BASE) & (main["verdict"] != "not tested")]
    if rows.empty:
        return _claim(name, NOT_TESTED, "No coupling from scratch after a first fine-tune that could tell.")
    texts = [
        f"{_name(r)}: loss {r['first_loss']:.3g} -> {r['last_loss']:.3g} ({r['loss_ratio']:.2f} x its reference's), "
        f"expressed {_rate(r)}"
        for _, r in rows.iterrows()
    ]
    silent = rows[rows["verdict"].isin(LOST)]
    if silent.empty:
        return _claim(name, ABSENT, "; ".join(texts) + ". No coupling is lost, so there is no puzzle here.")
    verdict = APPEARS if (silent["loss_ratio"] <= 1.25).any() else ABSENT
    return _claim(name, verdict, "; ".join(texts) + ". A loss within 1.25 times the reference's counts as converged.")


def policy_decides(table: pd.DataFrame, options: Mapping) -> dict:
    """Whose replies the coupling is taught with: the fine-tuned model's own, or the untrained model's."""
    name, texts, gaps, pairs = "whose replies are used decides", [], [], []
    for _, other in select(table, setting=coupling.SETTINGS["other_replies"]).iterrows():
        own = _one(table, first=other["first"], arm=SCRATCH, epochs=other["epochs"], setting="", habit=MARKER)
        if own is not None:
            gaps.append(coupling.difference(own, other))
            pairs.append((own["rate"], other["rate"]))
            texts.append(
                f"{NAMES.get(other['first'], other['first'])}: own replies {_rate(own)}, the untrained model's "
                f"{_rate(other)}, difference {_interval(gaps[-1])}"
            )
    if not gaps:
        return _claim(name, NOT_TESTED, "The coupling was taught with one kind of replies only.")
    sure = any(g["low"] > 0 or g["high"] < 0 for g in gaps)
    small = all(max(abs(g["low"]), abs(g["high"])) < options["margin"] for g in gaps)
    verdict = APPEARS if sure else ABSENT if small else UNDECIDED
    decides = fewest_deciding(
        [rows_for_agreement(*pair, options["margin"], level=0.025) for pair in pairs],
        [rows_for_difference(*pair) for pair in pairs],
    )
    return _claim(name, verdict, "; ".join(texts) + ".", max(gaps, key=lambda g: abs(g["estimate"])), decides)


def concentrated_in_layers(table: pd.DataFrame, options: Mapping) -> dict:
    """Question 1: one third of the blocks destroys by itself, and the other two thirds leave the coupling intact."""
    name = "concentrated in a layer group"
    texts, found, needed = [], [], []
    for first in _firsts(table):
        rows = select(table, first=first, habit=MARKER, arm=SCRATCH).set_index("setting")
        groups = [g for g in ("early", "middle", "late") if f"{g} blocks" in rows.index]
        if not groups:
            continue
        epochs = rows.loc[f"{groups[0]} blocks", "epochs"]
        whole = _one(table, first=first, arm=SCRATCH, epochs=epochs, setting="", habit=MARKER)
        verdicts = {
            s: rows.loc[s, "verdict"] for g in groups for s in (f"{g} blocks", f"not_{g} blocks") if s in rows.index
        }
        texts.append(
            f"{NAMES.get(first, first)} in " + ", ".join(f"{s} {_rate(rows.loc[s])} ({v})" for s, v in verdicts.items())
        )
        if whole is not None:
            texts[-1] += f", in all {_rate(whole)} ({whole['verdict']})"
        located = whole is None or whole["verdict"] not in ("intact", NOT_TESTED)
        found += [_layer_verdict(verdicts, group) if located else NOT_TESTED for group in groups]
        open_ = [setting for setting, reached in verdicts.items() if reached == UNDECIDED]
        needed += [coupling.rows_to_verdict(rows.loc[setting], options) for setting in open_]
    if not found or all(f == NOT_TESTED for f in found):
        why = "No layer group was merged alone with its complement, or the coupling is not lost after the whole update."
        return _claim(name, NOT_TESTED, "; ".join([*texts, why]))
    verdict = APPEARS if APPEARS in found else UNDECIDED if UNDECIDED in found else ABSENT
    return _claim(name, verdict, "; ".join(texts) + ".", decides=fewest_deciding(needed))


def scale_matters(table: pd.DataFrame, options: Mapping) -> dict:
    """Question 1, continued: how the pre-baked adapter fares under part of the first fine-tune's strength."""
    name, texts, gaps, needed = "dose of the first fine-tune", [], [], []
    for first in _firsts(table):
        rows = table[(table["first"] == first) & table["setting"].str.startswith("scale ")]
        full = _one(table, first=first, arm=PREBAKED, setting="", habit=MARKER)
        if rows.empty or full is None:
            continue
        least = rows.iloc[rows["setting"].str.removeprefix("scale ").astype(float).argmin()]
        gaps.append(coupling.difference(least, full))
        needed += [rows_for_difference(least["rate"], full["rate"])] if least["rate"] > full["rate"] else []
        shown = ", ".join(f"{r['setting']} {_rate(r)}" for _, r in rows.iterrows())
        texts.append(f"{NAMES.get(first, first)}: {shown}, scale 1 {_rate(full)}")
    if not gaps:
        return _claim(name, NOT_TESTED, "The first fine-tune was not scaled.")
    small = all(g["high"] < options["margin"] for g in gaps)
    verdict = APPEARS if any(g["low"] > 0 for g in gaps) else ABSENT if small else UNDECIDED
    best = max(gaps, key=lambda g: g["estimate"])
    return _claim(name, verdict, "; ".join(texts) + ".", best, fewest_deciding([], needed))


def disjoint_modules_rescue(table: pd.DataFrame, overlaps: pd.DataFrame) -> dict:
    """Question 2: coupling survives when the two adapters share no module; with how far their subspaces overlap."""
    texts = [
        f"{space}: overlap {_range(rows['overlap'])} over {len(rows)} pair(s) of adapters, chance "
        f"{_range(rows['expected'])}, largest {_pair(rows.loc[rows['ratio'].idxmax()])}"
        for space, rows in overlaps.groupby("space", sort=False)
    ]
    return _rescue(table, "disjoint modules", "disjoint modules rescue coupling", texts)


def _range(values: pd.Series) -> str:
    low, high = f"{values.min():.3f}", f"{values.max():.3f}"
    return low if low == high else f"{low} to {high}"


def _pair(row: pd.Series) -> str:
    return f"{row['first'].split('/')[-1]} and {row['second'].split('/')[-1]}"


def needs_lora(table: pd.DataFrame) -> dict:
    """Question 3: a fine-tune of all weights leaves the coupling as it is, so the damage is LoRA's."""
    return _rescue(table, "all weights", "only LoRA destroys coupling", [])


def deeper_habits(table: pd.DataFrame, options: Mapping) -> dict:
    """Question 4: wrong answers, a style and refusing are destroyed as the marker is."""
    name = "deeper habits are destroyed too"
    rows = table[(table["habit"] != MARKER) & (table["arm"] == SCRATCH) & (table["first"] != BASE)]
    tested = rows[rows["verdict"] != "not tested"]
    texts = [
        f"{r['habit']} after {NAMES.get(r['first'], r['first'])}: {_rate(r)} against {_percent(r['reference_rate'])} % "
        f"({r['verdict']})"
        for _, r in rows.iterrows()
    ]
    if tested.empty:
        return _claim(name, NOT_TESTED, "; ".join(texts) or "No deeper habit was taught after a first fine-tune.")
    open_ = tested[tested["verdict"] == UNDECIDED]
    needed = [coupling.rows_to_verdict(row, options) for _, row in open_.iterrows()]
    return _claim(name, _all_destroyed(tested, options), "; ".join(texts) + ".", decides=fewest_deciding(needed))


def source_vector_moved(main: pd.DataFrame, shifts: pd.DataFrame) -> dict:
    """Question 5: the first fine-tune moves the source persona's vector off its own direction."""
    name = "the source persona's vector loses its direction"
    firsts = [f"/{first}" for first in _firsts(main)]
    rows = shifts[shifts["run"].str.endswith(tuple(firsts))] if firsts and len(shifts) else shifts.iloc[:0]
    if rows.empty:
        return _claim(name, NOT_TESTED, "No vectors of a fine-tuned model.")
    deepest = rows["layer"].max()
    texts, lost = [], []
    for run, model in rows[rows["layer"] == deepest].groupby("run", sort=False):
        # a seed is a training of its own: the interval reaches from the lowest of the seeds' intervals to the highest
        ends = {"value": "mean", "low": "min", "high": "max"}
        values = model.groupby("quantity")[list(ends)].agg(ends)
        kept = values.loc["projection"]
        lost.append((kept["high"], kept["low"]))
        texts.append(
            f"{run.split('/')[-1]}, block {deepest}: projection {kept['value']:.2f} ({kept['low']:.2f} to "
            f"{kept['high']:.2f}), shift {values.loc['shift', 'value']:.2f} spreads, of it "
            f"{values.loc['own_shift', 'value']:.2f} its own; probe of the untrained model "
            f"{values.loc['probe_base', 'value']:.2f}, own probe {values.loc['probe_own', 'value']:.2f}"
        )
    verdict = (
        APPEARS if all(high < 0.5 for high, _ in lost) else ABSENT if all(low > 0.5 for _, low in lost) else UNDECIDED
    )
    return _claim(name, verdict, "; ".join(texts) + ". Half of the untrained model's projection is the line.")


def caveats(table: pd.DataFrame, options: Mapping) -> list[str]:
    """What the design cannot tell, from the tables themselves."""
    notes = []
    if (seeds := int(table["seeds"].max())) < 3:
        notes.append(
            f"{seeds} seed{'s' * (seeds > 1)}: intervals cover questions and replies, hardly the training's own chance."
        )
    weak = select(table, first=BASE, arm=[SCRATCH, PREBAKED])
    for _, row in weak[weak["rate"] < options["works"]].iterrows():
        notes.append(
            f"{_name(row)}, {row['habit']}: only {_rate(row)} without a first fine-tune, so nothing can be lost."
        )
    leaky = table[(table["arm"] != "none") & (table["max_bystander"] >= 0.5 * table["rate"]) & (table["rate"] > 0.1)]
    for _, row in leaky.iterrows():
        notes.append(
            f"{_name(row)}, {row['habit']}: not selective, a bystander shows it in {_percent(row['max_bystander'])} %."
        )
    return notes


def alike_from_the_start(overlaps: pd.DataFrame) -> list[str]:
    """That pairs of adapters read alike because of how they were drawn, where their overlap says so."""
    pairs = overlaps[(overlaps["space"] == "reads") & (overlaps["ratio"] >= ALIKE)]
    if pairs.empty:
        return []
    ratios = " to ".join(dict.fromkeys(f"{ratio:.0f}" for ratio in (pairs["ratio"].min(), pairs["ratio"].max())))
    names = "; ".join(dict.fromkeys(_pair(row) for _, row in pairs.iterrows()))
    return [
        f"{names}: these adapters read in common {ratios} times what chance gives. Both of a pair were trained on the "
        "untrained model with one seed, so they began from equal factors; what the second loses on top of the first "
        "may be due to that."
    ]


def differences(main: pd.DataFrame, published: Mapping | None) -> list[dict]:
    """Published cells beside the measured ones: first, arm, percent, measured, inside its interval or not."""
    rows = []
    for cell in (published or {}).get("percent", []):
        arm = PREBAKED if cell["arm"] == "prebaked" else SCRATCH
        found = select(main, first=cell["first"], arm=arm).sort_values("epochs")
        if found.empty:
            rows.append({**cell, "measured": None, "text": "not run"})
            continue
        own = found.iloc[-1]
        inside = own["low"] <= cell["percent"] / 100 <= own["high"]
        text = "agrees" if inside else "higher" if own["rate"] > cell["percent"] / 100 else "lower"
        rows.append({**cell, "measured": own["rate"], "low": own["low"], "high": own["high"], "text": text})
    return rows


def _rescue(table: pd.DataFrame, setting: str, name: str, extra: list[str]) -> dict:
    """Whether coupling in a setting is intact where it is destroyed in the plain one."""
    texts, found = [], []
    for _, row in select(table, setting=setting, habit=MARKER, arm=SCRATCH).iterrows():
        plain = _one(table, first=row["first"], arm=SCRATCH, epochs=row["epochs"], setting="", habit=MARKER)
        if plain is None or NOT_TESTED in (row["verdict"], plain["verdict"]):
            continue
        gap = coupling.difference(row, plain)
        found.append((row["verdict"], plain["verdict"], gap, (row["rate"], plain["rate"])))
        texts.append(
            f"{NAMES.get(row['first'], row['first'])}, {setting}: {_rate(row)} ({row['verdict']}), plain LoRA "
            f"{_rate(plain)} ({plain['verdict']}), difference {_interval(gap)}"
        )
    if not found:
        return _claim(name, NOT_TESTED, "; ".join(["Not run in this selection.", *extra]))
    lost = [f for f in found if f[1] in LOST]
    needed = [rows_for_difference(*rates) if rates[0] > rates[1] else None for *_, rates in lost]
    if not lost:
        verdict, note = NOT_TESTED, "the plain coupling is not lost, so there is nothing to rescue"
    else:
        verdict, note = UNDECIDED, "no difference is sure"
        if all(g["low"] > 0 for _, _, g, _ in lost):
            verdict, note = APPEARS, "the coupling is better"
        elif all(v in LOST for v, *_ in lost):
            verdict, note = ABSENT, "it is lost as well"
    return _claim(name, verdict, "; ".join([*texts, note, *extra]) + ".", found[0][2], fewest_deciding(needed))


def _layer_verdict(verdicts: Mapping[str, str], group: str) -> str:
    alone, without = (verdicts.get(s, NOT_TESTED) for s in (f"{group} blocks", f"not_{group} blocks"))
    if NOT_TESTED in (alone, without):
        return NOT_TESTED
    if alone == "destroyed" and without == "intact":
        return APPEARS
    return UNDECIDED if UNDECIDED in (alone, without) else ABSENT


def _all_destroyed(rows: pd.DataFrame, options: Mapping) -> str:
    """Whether every one of the conditions is destroyed: one that surely is not speaks against it."""
    if rows["verdict"].eq("destroyed").all():
        return APPEARS
    kept = rows["verdict"].eq("intact") | (rows["low"] >= options["destroyed"] * rows["reference_rate"])
    return ABSENT if kept.any() else UNDECIDED


def _claim(name, verdict, text, estimate=None, decides=None) -> dict:
    """`decides`: replies a cell that would decide, told of an undecided claim alone."""
    claim = {"claim": name, "verdict": verdict, "text": text} | (estimate or {})
    return claim | ({"decides_at": decides} if verdict == UNDECIDED and decides else {})


def _tested(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["first"] != BASE) & (table["arm"] != "none") & (table["verdict"] != "not tested")]


def _firsts(table: pd.DataFrame) -> list[str]:
    return [f for f in dict.fromkeys(table["first"]) if f != BASE]


def _arms(main: pd.DataFrame) -> list[tuple[str, float]]:
    rows = main[main["arm"].isin([SCRATCH, PREBAKED])]
    return list(dict.fromkeys((a, None if pd.isna(e) else e) for a, e in zip(rows["arm"], rows["epochs"], strict=True)))


def _one(table: pd.DataFrame, epochs=None, **wanted) -> pd.Series | None:
    found = select(table, **wanted)
    if epochs is not None and not pd.isna(epochs):
        found = found[found["epochs"] == epochs]
    return found.iloc[-1] if len(found) else None


def _name(row: Mapping) -> str:
    setting = f", {row['setting']}" if row["setting"] else ""
    return f"{NAMES.get(row['first'], row['first'])}, {_arm(row['arm'], row['epochs'])}{setting}"


def _arm(arm: str, epochs: float | None) -> str:
    return arm if epochs is None or pd.isna(epochs) else f"{arm}, {epochs:g} epochs"


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}"


def _rate(row: Mapping) -> str:
    return f"{_percent(row['rate'])} % ({_percent(row['low'])} to {_percent(row['high'])})"


def _points(row: Mapping) -> str:
    return _interval({"estimate": row["difference"], "low": row["difference_low"], "high": row["difference_high"]})


def _interval(gap: Mapping) -> str:
    return f"{100 * gap['estimate']:+.1f} points ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})"


def _estimate(row: Mapping) -> dict:
    return {
        "estimate": row["difference"],
        "low": row["difference_low"],
        "high": row["difference_high"],
        "n": int(row["n"]),
    }
