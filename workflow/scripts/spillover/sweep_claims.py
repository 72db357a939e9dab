"""What a marker sweep shows: verdicts on the write-up's claims, and every difference from its table.

Decides from the tables of `sweep_cells` and `sweep_boundary` alone; the words are `sweep_report`'s. A verdict is
"appears", "does not appear", "undecided" (the data allow both, or seeds disagree) or "not tested".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from . import statistics, sweep_cells
from .equivalence import fewest_deciding, rows_for_gap, rows_for_limit
from .marker_rates import ALL_SEEDS

APPEARS, ABSENT, UNDECIDED, UNTESTED = "appears", "does not appear", "undecided", "not tested"
DOSE = sweep_cells.DOSE
SATURATED = 0.9  # the write-up: 90 to 100 % in every bystander


def summarise(
    cells: pd.DataFrame, boundary: pd.DataFrame, options: Mapping, published: Mapping | None, run: Mapping
) -> dict:
    """Everything that summary.json holds. `run`: seeds, protocol, model and the settings of the runs as the plan has
    them; `published`: resources/published/marker_sweep.yaml. Claims are judged on the main grid: the setting with most
    cells."""
    main = cells.groupby("setting", sort=False).size().idxmax()
    grid = cells[cells["setting"] == main]
    pooled = sweep_cells.all_seeds(grid)
    reference = published_cells(published, options) if published else None
    best = sweep_cells.recommended(grid)
    claims = [
        three_regimes(grid),
        lowest_rate(grid),
        clean_band(grid),
        one_row(grid),
        sharp(grid),
        saturation(grid),
        capability(grid, options["capability_loss"]),
        pinned(grid, options),
    ]
    return {
        "setting": main,
        "seeds": run["seeds"],
        "protocol": run["protocol"],
        "replies_per_persona": [int(v) for v in (pooled["source_n"].min(), pooled["source_n"].max())],
        "answer": _answer(best, pooled),
        "claims": claims,
        "caveats": _caveats(run["seeds"], pooled),
        "recommended": best,
        "nearest": None if best else _nearest(pooled),
        "readings": {name: _names(pooled[pooled[f"reading_{name}"]]) for name in options["readings"]},
        "counts": {name: int((pooled["regime"] == name).sum()) for name in sweep_cells.REGIMES},
        "cells": pooled.to_dict("records"),
        "variants": sweep_cells.all_seeds(cells[cells["setting"] != main]).to_dict("records"),
        "bands": [_band(setting, rows, best) for setting, rows in cells.groupby("setting", sort=False)],
        "reversals": reversals(pooled),
        "boundary": boundary.to_dict("records"),
        "broken": _names(pooled[~pooled["able"] | ~pooled["whole"]]),
        "strict_gap": (pooled["source"] - pooled["strict"]).abs().max(),
        "options": dict(options),
        "differences": differences(pooled, reference, options) if reference is not None else None,
        "settings": compared_settings(run, published, grid) if published else None,
    }


def published_cells(published: Mapping, options: Mapping) -> pd.DataFrame:
    """The published cells in this project's columns (shares), with the regime that our limits give them."""
    table = pd.DataFrame(published["cells"])
    for name in ("source", "assistant", "bystander", "spread"):
        table[name] /= 100
    table["leak"] = table[["assistant", "bystander"]].max(axis=1)
    limits = options["regimes"]
    table["regime"] = [
        sweep_cells.regime(*row, limits) for row in table[["source", "leak", "spread"]].itertuples(index=False)
    ]
    return table.rename(columns={"bystander": "max_bystander"})


def three_regimes(grid: pd.DataFrame) -> dict:
    """Under-trained, selective and collapsed cells all occur."""
    wanted = ("under-trained", "selective", "collapsed")
    found = {seed: set(rows["regime"]) for seed, rows in _seeds(grid)}
    full = [seed for seed, regimes in found.items() if regimes >= set(wanted)]
    missing = {name: [s for s, regimes in found.items() if name not in regimes] for name in wanted}
    verdict = APPEARS if len(full) == len(found) else (UNDECIDED if full else ABSENT)
    gaps = "; ".join(f"no {name} cell in seed {_list(seeds)}" for name, seeds in missing.items() if seeds)
    text = f"All three of {_list(wanted)} occur in {len(full)} of {len(found)} seeds" + (f" ({gaps})." if gaps else ".")
    return _claim("three regimes", verdict, text, n=len(found))


def lowest_rate(grid: pd.DataFrame) -> dict:
    """The marker is never learnt at the lowest learning rate, whatever the epochs."""
    rows = grid[grid["learning_rate"] == grid["learning_rate"].min()]
    rows = sweep_cells.all_seeds(rows)
    learned = rows[rows["regime"] != "under-trained"]
    verdict = APPEARS if learned.empty else (ABSENT if learned["settled"].any() else UNDECIDED)
    high = rows["source"].max()
    text = f"At {rows['learning_rate'].iloc[0]:g} the source reaches {_percent(high)} at most, over {len(rows)} cells."
    decides = _to_settle(learned) if verdict == UNDECIDED else {}
    return _claim("under-trained row", verdict, text, estimate=high, n=int(rows["source_n"].sum()), **decides)


def clean_band(grid: pd.DataFrame) -> dict:
    """Some cell is selective: the source has the marker and nobody else."""
    pooled = sweep_cells.all_seeds(grid)
    found = pooled[pooled["regime"] == "selective"]
    per_seed = {seed: int((rows["regime"] == "selective").sum()) for seed, rows in _seeds(grid)}
    some = sum(count > 0 for count in per_seed.values())
    if found.empty:
        verdict = UNDECIDED if some else ABSENT
    else:
        verdict = APPEARS if 2 * some > len(per_seed) else UNDECIDED
    settled = int(found["settled"].sum())
    text = (
        f"{len(found)} of {len(pooled)} cells are selective with all seeds together, {settled} of them settled (the "
        f"same in every seed and anywhere within the intervals). {some} of {len(per_seed)} seeds have a selective cell."
    )
    return _claim("clean band", verdict, text, n=len(per_seed))


def one_row(grid: pd.DataFrame) -> dict:
    """The selective cells occupy a single learning rate."""
    pooled = sweep_cells.all_seeds(grid)
    rates = sorted(pooled.loc[pooled["regime"] == "selective", "learning_rate"].unique())
    if not rates:
        return _claim("single learning rate", UNTESTED, "There is no selective cell.")
    settled = pooled[(pooled["regime"] == "selective") & pooled["settled"]]["learning_rate"].nunique()
    verdict = APPEARS if len(rates) == 1 else (ABSENT if settled > 1 else UNDECIDED)
    text = (
        f"Selective cells lie at {len(rates)} of {pooled['learning_rate'].nunique()} learning rates: {_rates(rates)}."
    )
    decides = _to_settle(pooled[pooled["regime"] == "selective"]) if verdict == UNDECIDED else {}
    return _claim("single learning rate", verdict, text, estimate=len(rates), **decides)


def sharp(grid: pd.DataFrame) -> dict:
    """The next higher learning rate of the grid turns every selective cell leaky or collapsed."""
    pooled = sweep_cells.all_seeds(grid)
    rates = sorted(pooled["learning_rate"].unique())
    tested, flipped, stay = 0, 0, []
    for row in pooled[pooled["regime"] == "selective"].itertuples():
        higher = [r for r in rates if r > row.learning_rate]
        above = pooled[(pooled["epochs"] == row.epochs) & (pooled["learning_rate"] == (higher or [-1])[0])]
        if above.empty:
            continue
        tested += 1
        turned = above["regime"].iloc[0] in ("leaky", "collapsed")
        flipped += turned
        stay += [] if turned else [f"{row.learning_rate:g} with epochs {row.epochs:g}"]
    if not tested:
        return _claim("one step flips", UNTESTED, "No selective cell has a higher learning rate beside it.")
    last = _last_selective(pooled, rates)
    verdict = APPEARS if flipped == tested else (ABSENT if not flipped and not last else UNDECIDED)
    text = f"{flipped} of {tested} selective cells turn leaky or collapsed at the next higher learning rate of the grid"
    text += f"; not those at {_list(stay)}." if stay else "."
    return _claim("one step flips", verdict, text, estimate=flipped / tested, n=tested)


def saturation(grid: pd.DataFrame) -> dict:
    """At the highest learning rates every other persona shows the marker."""
    pooled = sweep_cells.all_seeds(grid)
    rows = pooled[pooled["learning_rate"] == pooled["learning_rate"].max()]
    lowest, highest = rows["spread"].min(), rows["spread"].max()
    verdict = APPEARS if lowest >= SATURATED else (ABSENT if rows["spread_high"].max() < SATURATED else UNDECIDED)
    text = (
        f"At {rows['learning_rate'].iloc[0]:g} the mean over all personas but the source is {_percent(lowest)} to "
        f"{_percent(highest)}; saturated means {_percent(SATURATED)}."
    )
    low = rows.loc[rows["spread"] < SATURATED].to_dict("records")
    needed = [(row["others"], rows_for_limit(row["spread"], SATURATED)) for row in low]
    decides = _replies([n and math.ceil(n / others) for others, n in needed]) if verdict == UNDECIDED else {}
    return _claim("saturated collapse", verdict, text, estimate=float(lowest), n=int(rows["source_n"].sum()), **decides)


def capability(grid: pd.DataFrame, loss: float) -> dict:
    """Multiple choice stays where it was: in no cell is it more than `loss` below the untrained model."""
    measured = sweep_cells.all_seeds(grid).dropna(subset="capability")
    pooled = measured.dropna(subset="capability_change")
    if measured.empty:
        return _claim("capability kept", UNTESTED, "Multiple choice was not measured.")
    if pooled.empty:
        text = f"{_percent(measured['capability'].min())} to {_percent(measured['capability'].max())} over the sweep; "
        return _claim("capability kept", UNTESTED, text + "the untrained model was not measured.")
    lows, highs, needed = [], [], []
    for row in pooled.itertuples():
        k, n = int(row.right), int(row.items)
        before = round((row.capability - row.capability_change) * n)
        low, high = statistics.newcombe(k, n, before, n)
        lows.append(low)
        highs.append(high)
        if low <= -loss:
            needed.append((row.capability_change < -loss, rows_for_gap(k / n, before / n, -loss)))
    worst = int(np.argmin(pooled["capability_change"]))
    row = pooled.iloc[worst]
    verdict = APPEARS if min(lows) > -loss else (ABSENT if min(highs) < -loss else UNDECIDED)
    fall = 100 * -row["capability_change"] + 0.0  # no "-0.0"
    text = (
        f"The largest fall is {fall:.1f} points (learning rate {row['learning_rate']:g}, "
        f"{row['epochs']:g} epochs; 95 % {100 * lows[worst]:.1f} to {100 * highs[worst]:.1f}); range over the sweep "
        f"{_percent(pooled['capability'].min())} to {_percent(pooled['capability'].max())}, allowed fall "
        f"{_percent(loss)}."
    )
    found = {"estimate": float(row["capability_change"]), "low": lows[worst], "high": highs[worst]}
    items = fewest_deciding((n for _, n in needed), (n for fallen, n in needed if fallen))
    if verdict == UNDECIDED and items:
        found["decides_at"] = f"about {items:,} questions"
    return _claim("capability kept", verdict, text, **found, n=int(row["items"]))


def pinned(grid: pd.DataFrame, options: Mapping) -> dict:
    """The cell that later experiments use is selective."""
    found = sweep_cells.pinned_cell(grid, **options["pinned"])
    if not found["measured"]:
        return _claim("pinned cell", UNTESTED, found["text"])
    verdict = APPEARS if found["in_band"] else ABSENT
    if not found["settled"]:
        verdict = UNDECIDED
    decides = _replies([found["settles_at"]]) if verdict == UNDECIDED else {}
    return _claim("pinned cell", verdict, found["text"], estimate=found["source"], **decides)


def differences(pooled: pd.DataFrame, reference: pd.DataFrame, options: Mapping) -> dict:
    """Cell by cell at the same place of the grid: learning rate over `learning_rate_scale`, and epochs."""
    scale = options["learning_rate_scale"]
    rows, alone = [], []
    for cell in pooled.itertuples():
        near = np.isclose(reference["learning_rate"], cell.learning_rate / scale, rtol=1e-3, atol=0)
        match = reference[near & (reference["epochs"] == cell.epochs)]
        if match.empty:
            alone.append({"learning_rate": cell.learning_rate, "epochs": cell.epochs})
            continue
        other = match.iloc[0]
        row = {"learning_rate": cell.learning_rate, "epochs": cell.epochs, "regime": cell.regime}
        row |= {"published_learning_rate": float(other["learning_rate"]), "published_regime": other["regime"]}
        for name in ("source", "assistant", "max_bystander", "capability"):
            row |= {name: getattr(cell, name), f"published_{name}": float(other[name])}
        rows.append(row)
    compared = {(row["published_learning_rate"], row["epochs"]) for row in rows}
    unmeasured = [
        {"learning_rate": float(r.learning_rate), "epochs": int(r.epochs)}
        for r in reference.itertuples()
        if (r.learning_rate, r.epochs) not in compared
    ]
    other_regime = [row for row in rows if row["regime"] != row["published_regime"]]
    return {
        "scale": scale, "compared": len(rows), "same": len(rows) - len(other_regime), "other_regime": other_regime,
        "cells": rows, "unpublished": alone, "unmeasured": unmeasured,
    }  # fmt: skip


def compared_settings(run: Mapping, published: Mapping, grid: pd.DataFrame) -> list[dict]:
    """Settings in which the measured runs differ from the published ones: name, here, published."""
    replies = {"replies_per_persona": int(grid.loc[grid["seed"] != ALL_SEEDS, "source_n"].min())}
    here = run["settings"] | replies | {"model": run["model"], "seeds": run["seeds"]}
    return [
        {"setting": name, "here": here[name], "published": value}
        for name, value in published["settings"].items()
        if name in here and here[name] != value
    ]


def reversals(pooled: pd.DataFrame) -> list[dict]:
    """Neighbouring doses where more training certainly leaks less: the leak's bounds do not overlap."""
    found = []
    for along, fixed in (("learning_rate", "epochs"), ("epochs", "learning_rate")):
        for value, line in pooled.groupby(fixed):
            line = line.sort_values(along)
            for (_, less), (_, more) in zip(line.iloc[:-1].iterrows(), line.iloc[1:].iterrows(), strict=True):
                if more["leak_high"] < less["leak_low"]:
                    row = {"along": along, fixed: value, "from": less[along], "to": more[along]}
                    found.append(row | {"leak_from": less["leak"], "leak_to": more["leak"]})
    return found


def _answer(best: dict | None, pooled: pd.DataFrame) -> str:
    if best is None:
        return (
            "Nowhere on the grid does only the source persona emit the marker: "
            f"{_list([f'{count} cells {name}' for name, count in pooled['regime'].value_counts().items()])}."
        )
    cells = int((pooled["regime"] == "selective").sum())
    return (
        f"Only the source emits the marker in {cells} of {len(pooled)} cells; the best is learning rate "
        f"{best['learning_rate']:g} with {best['epochs']:g} epochs: source {_percent(best['source'])}, largest other "
        f"persona {_percent(best['leak'])} (simultaneous upper bound {_percent(best['leak_high'])})."
    )


def _caveats(seeds: Sequence[int], pooled: pd.DataFrame) -> list[str]:
    found = []
    if len(seeds) == 1:
        found.append("One seed: intervals cover the sampling of replies only, not another training run.")
    found.append("The same prompts and items serve every cell and seed, so these are not independent of each other.")
    unsettled = int((~pooled["settled"]).sum())
    if unsettled:
        found.append(f"In {unsettled} of {len(pooled)} cells the intervals reach into another regime.")
    return found


def _band(setting: str, rows: pd.DataFrame, best: dict | None) -> dict:
    """The selective cells of a setting, and whether the cell recommended for the main grid is among them."""
    pooled = sweep_cells.all_seeds(rows)
    found = _names(pooled[pooled["regime"] == "selective"])
    at = best and [cell for cell in found if all(cell[name] == best[name] for name in DOSE)]
    own = sweep_cells.recommended(rows)
    use = {name: own[name] for name in DOSE} if own else None
    return {"setting": setting, "cells": len(pooled), "selective": found, "holds_best": bool(at), "recommended": use}


def _nearest(pooled: pd.DataFrame) -> dict:
    """Without a selective cell, the one in which source and the others lie furthest apart."""
    return pooled.loc[(pooled["source"] - pooled["leak"]).idxmax()].to_dict()


def _last_selective(pooled: pd.DataFrame, rates: list[float]) -> bool:
    return bool(((pooled["regime"] == "selective") & (pooled["learning_rate"] == rates[-1])).any())


def _seeds(grid: pd.DataFrame):
    return grid[grid["seed"] != ALL_SEEDS].groupby("seed")


def _names(rows: pd.DataFrame) -> list[dict]:
    return rows[[*DOSE, "run"]].to_dict("records")


def _to_settle(rows: pd.DataFrame) -> dict:
    """What would settle the regimes of all these cells."""
    return _replies(rows.loc[~rows["settled"], "settles_at"])


def _replies(needed) -> dict:
    """`decides_at` of replies a persona: enough for all of `needed`; nothing where a rate lies on its limit."""
    known = [None if n is None or math.isnan(n) else int(n) for n in needed]
    rows = fewest_deciding(known)
    return {"decides_at": f"about {rows:,} replies a persona"} if rows else {}


def _claim(claim: str, verdict: str, text: str, **numbers) -> dict:
    return {"claim": claim, "verdict": verdict, "text": text, **numbers}


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _rates(rates) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)


def _list(words) -> str:
    words = [str(w) for w in words]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
