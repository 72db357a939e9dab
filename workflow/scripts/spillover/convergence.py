"""Convergence: how close the assistant comes to a source persona, and how much of the source's marker it then shows.

One model is one point: its arm, source persona, seed and step on the way, the marker rates of its personas and the
cosine between its assistant and its source. The arms are groups of the experiment of these names:

* A (`arm_a`): the marker first, then convergence training, at every checkpoint of it;
* B (`arm_b`): convergence first, then the marker at every checkpoint;
* C (`arm_c`): the marker first, then generic training;
* `steered`: the marker first, then activations pushed towards the source, by coefficient.

Step 0 of every arm is one model: the marker trained on the untrained model (group `marker`). The module knows tables
and nothing of files, figures or models.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd

from . import block_tests, centroid_cosines, statistics

ARMS = {"arm_a": "A", "arm_b": "B", "arm_c": "C", "steered": "steered"}
TRAINED_ARMS = ("A", "B", "C")
START, BEFORE = "marker", "arm_b_convergence"
ASSISTANT = "assistant"
KINDS = ("centred", "raw")


def models(records: list[dict]) -> pd.DataFrame:
    """One row for every model that is a point: run, seed, checkpoint, arm, source, step.

    `step` is percent of the second training (0 for the shared start), or the coefficient of a steered run. Raises
    ValueError when two models would be one point, as they are when a group runs over an axis that no arm has.
    """
    rows = []
    for record in records:
        group, fields = record["group"], record["fields"]
        if group == START:
            arms = [ARMS[other] for other in dict.fromkeys(r["group"] for r in records) if other in ARMS]
            rows += [_model(record, record["checkpoints"][-1], arm, 0.0) for arm in arms]
        elif group == "arm_b":
            rows.append(_model(record, record["checkpoints"][-1], "B", percent(fields["checkpoint"])))
        elif group == "steered":
            rows.append(_model(record, record["checkpoints"][-1], "steered", float(record["steer"]["coefficient"])))
        elif group in ARMS:
            rows += [_model(record, c, ARMS[group], percent(c)) for c in record["checkpoints"]]
    table = pd.DataFrame(rows, columns=["run", "seed", "checkpoint", "arm", "source", "step"])
    twice = table[table.duplicated(["seed", "arm", "source", "step"], keep=False)]
    if len(twice):
        raise ValueError(
            f"convergence: {' and '.join(sorted(set(twice['run']))[:2])} are both arm {twice['arm'].iloc[0]} at step "
            f"{twice['step'].iloc[0]:g} of {twice['source'].iloc[0]}; select one value of the axis in which they differ"
        )
    order = {source: i for i, source in enumerate(dict.fromkeys(table["source"]))}
    by = ["arm", "source", "seed", "step"]
    return table.sort_values(by, key=lambda c: c.map(order) if c.name == "source" else c, ignore_index=True)


def percent(checkpoint: str) -> float:
    """`pct40` -> 40.0, `final` -> 100.0. Raises ValueError for a step count, whose share of the way is not known."""
    if checkpoint == "final":
        return 100.0
    if found := re.fullmatch(r"pct(\d+)", checkpoint):
        return float(found[1])
    raise ValueError(f"convergence: the checkpoint {checkpoint!r} gives no percentage; name checkpoints as pct20")


def points(models: pd.DataFrame, rates: pd.DataFrame, scorer: str) -> pd.DataFrame:
    """`models` with the marker rates of one scorer: the source's, the assistant's and those of all other personas.

    Columns source_rate, source_hits, source_n, source_low, source_high, the same of the assistant, bystander_mean (mean
    rate of the personas that are neither: the breadth of the leak), bystander_max, max_bystander (its id),
    bystander_max_high (upper bound that holds for the largest of them at once) and bystanders (how many).
    """
    rates = rates[rates["scorer"] == scorer]
    keyed = {key: frame.set_index("persona") for key, frame in rates.groupby(["run", "seed", "checkpoint"])}
    rows = []
    for model in models.to_dict("records"):
        key = (model["run"], model["seed"], model["checkpoint"])
        if key not in keyed:
            raise ValueError(f"convergence: no {scorer} rates of {model['run']}, seed {model['seed']} at {key[2]}")
        of = keyed[key]
        if missing := {model["source"], ASSISTANT} - set(of.index):
            raise ValueError(f"convergence: {model['run']} was not asked as {', '.join(sorted(missing))}")
        row = dict(model)
        for role, persona in (("source", model["source"]), ("assistant", ASSISTANT)):
            row |= {f"{role}_{name}": of.loc[persona, name] for name in ("rate", "hits", "n", "low", "high")}
        others = of.drop(index=[*{model["source"], ASSISTANT}])
        top = others["rate"].idxmax() if len(others) else None
        row |= {"bystanders": len(others), "bystander_mean": others["rate"].mean(), "max_bystander": top}
        row["bystander_max"] = others["rate"].max()
        row["bystander_max_high"] = max(
            (
                statistics.sidak_upper(int(k), int(n), len(others))
                for k, n in zip(others["hits"], others["n"], strict=True)
            ),
            default=math.nan,
        )
        row["bystander_mean_low"], row["bystander_mean_high"] = _mean_interval(others)
        rows.append(row)
    return pd.DataFrame(rows)


def paths(models: pd.DataFrame, cosines: pd.DataFrame, records: list[dict]) -> pd.DataFrame:
    """The cosine between assistant and source along every arm: arm, source, seed, step, stage, method, layer, values.

    stage `evaluated` is the model whose leakage is measured. For arm B, `before marker` is the converged model that the
    marker is then trained on; its step 0 is the untrained model.
    """
    wanted = models.assign(stage="evaluated")
    before = []
    for record in records:
        if record["group"] == BEFORE:
            before += [_model(record, c, "B", percent(c)) for c in record["checkpoints"]]
            base = next((r for r in records if r["group"] == "base" and r["vectors"]), None)
            before += [_model(base, "final", "B", 0.0, source=record["fields"]["source"])] if base else []
            if base:
                before[-1]["of_seed"] = record["seed"]
    if before:
        wanted = pd.concat([wanted, pd.DataFrame(before).assign(stage="before marker")], ignore_index=True)
    frames = []
    for source in dict.fromkeys(wanted["source"]):
        pair = centroid_cosines.between(cosines, ASSISTANT, source).drop(columns=["a", "b"])
        frames.append(wanted[wanted["source"] == source].merge(pair, on=["run", "seed", "checkpoint"]))
    table = pd.concat(frames, ignore_index=True)
    if "of_seed" in table:
        table["seed"] = table["of_seed"].fillna(table["seed"]).astype(int)
        table = table.drop(columns="of_seed")
    # sources stay in the order of the experiment
    return table.sort_values(["method", "layer", "stage", "arm", "seed", "step"], ignore_index=True, kind="stable")


def joined(points: pd.DataFrame, paths: pd.DataFrame, layer: int, method: str) -> pd.DataFrame:
    """Points with the cosines of one layer (columns raw, centred and their intervals), of the evaluated models."""
    chosen = paths[(paths["layer"] == layer) & (paths["method"] == method) & (paths["stage"] == "evaluated")]
    kept = ["run", "seed", "checkpoint", "arm", "source", "step", *centroid_cosines.COLUMNS[2:]]
    return points.merge(chosen[kept], on=kept[:6], how="left")


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of every numeric column, per arm, source and step."""
    return table.groupby(["arm", "source", "step"], sort=False).mean(numeric_only=True).reset_index()


def within_source(table: pd.DataFrame, with_start: bool = False) -> pd.DataFrame:
    """Spearman's rho of cosine and assistant leakage along each arm of each source, with its exact p.

    `table` is `joined`; seeds are averaged first. The shared start (step 0) is left out unless `with_start`: it is the
    same model in every arm. Holm's correction runs over the sources of an arm.
    """
    rows = []
    for (arm, kind), trail in _trails(over_seeds(table), with_start):
        found = []
        for source, of in trail.groupby("source", sort=False):
            test = block_tests.spearman_test(of[kind], of["assistant_rate"], statistics.stable_seed(arm, source, kind))
            found.append({"arm": arm, "kind": kind, "source": source} | _as_row(test))
        for row, p in zip(found, statistics.holm([row["p"] for row in found]), strict=True):
            rows.append(row | {"p_holm": p})
    return pd.DataFrame(rows)


def between_sources(table: pd.DataFrame, step: float) -> pd.DataFrame:
    """Spearman's rho of cosine and leakage over the sources at one step of each arm: as many points as sources."""
    rows = []
    for (arm, kind), trail in _trails(over_seeds(table), False):
        at = trail[trail["step"] == step]
        test = block_tests.spearman_test(at[kind], at["assistant_rate"], statistics.stable_seed(arm, kind, step))
        rows.append({"arm": arm, "kind": kind, "step": step} | _as_row(test))
    return pd.DataFrame(rows)


def pooled(table: pd.DataFrame) -> pd.DataFrame:
    """All checkpoints of all sources of an arm in one correlation: the naive p beside whole trajectories permuted.

    The naive p takes every checkpoint for an observation of its own. `p` permutes the sources' whole trajectories.
    """
    rows = []
    for (arm, kind), trail in _trails(over_seeds(table), False):
        x, y = _blocks(trail, kind), _blocks(trail, "assistant_rate")
        if x is None or y is None:
            continue
        test = block_tests.block_permutation(x, y)
        naive = naive_p(test.statistic, x.size)
        rows.append({"arm": arm, "kind": kind, "points": x.size, "naive_p": naive} | _as_row(test))
    return pd.DataFrame(rows)


def naive_p(rho: float, n: int) -> float:
    """The p that treats all n points as independent (the usual t approximation)."""
    if math.isnan(rho) or n < 3 or abs(rho) >= 1:
        return math.nan if math.isnan(rho) or n < 3 else 0.0
    from scipy.stats import t

    return float(2 * t.sf(abs(rho) * math.sqrt((n - 2) / (1 - rho**2)), n - 2))


def clustering(table: pd.DataFrame, variables: tuple[str, ...]) -> pd.DataFrame:
    """ICC(1) of named variables over an arm's sources, and how many independent points its checkpoints are worth."""
    rows = []
    trails = over_seeds(table)
    for arm, trail in trails[trails["arm"].isin(TRAINED_ARMS) & (trails["step"] > 0)].groupby("arm"):
        for variable in variables:
            groups = [of[variable].dropna().tolist() for _, of in trail.groupby("source")]
            size = sum(map(len, groups)) / len(groups)
            icc = statistics.icc_oneway(groups)
            n = sum(map(len, groups))
            row = {"arm": arm, "variable": variable, "sources": len(groups), "points": n, "icc": icc}
            rows.append(row | {"effective_n": math.nan if math.isnan(icc) else statistics.effective_n(n, icc, size)})
    return pd.DataFrame(rows)


def predictors(table: pd.DataFrame) -> pd.DataFrame:
    """Cosine against breadth of the leak as predictors of assistant leakage, per arm.

    predictor `cosine` or `breadth` (mean rate of the bystanders); scope `pooled` (whole trajectories permuted),
    `partial` (the same, with the other predictor held fixed) or `within` (mean over sources of the rho along the arm,
    signs flipped per source). predictor `difference` compares the sizes of both rhos within each source.
    """
    rows = []
    for (arm, kind), trail in _trails(over_seeds(table), False):
        columns = {"cosine": kind, "breadth": "bystander_mean"}
        blocks = {name: _blocks(trail, column) for name, column in columns.items()}
        leak = _blocks(trail, "assistant_rate")
        if leak is None or any(block is None for block in blocks.values()):
            continue
        within = {
            name: [block_tests.spearman(x, y) for x, y in zip(block, leak, strict=True)]
            for name, block in blocks.items()
        }
        for name, other in (("cosine", "breadth"), ("breadth", "cosine")):
            at = {"arm": arm, "kind": kind, "predictor": name}
            rows.append(at | {"scope": "pooled"} | _as_row(block_tests.block_permutation(blocks[name], leak)))
            partial = block_tests.block_permutation(blocks[name], leak, given=blocks[other])
            rows.append(at | {"scope": "partial"} | _as_row(partial))
            rows.append(at | {"scope": "within"} | _as_row(block_tests.sign_flip(within[name])))
        sizes = [abs(a) - abs(b) for a, b in zip(within["breadth"], within["cosine"], strict=True)]
        at = {"arm": arm, "kind": kind, "predictor": "difference", "scope": "within"}
        rows.append(at | _as_row(block_tests.sign_flip(sizes)))
    return pd.DataFrame(rows)


def across_personas(
    models: pd.DataFrame, rates: pd.DataFrame, cosines: pd.DataFrame, scorer: str, layer: int, method: str
) -> pd.DataFrame:
    """Within one model: do personas nearer to the source leak more? Spearman's rho over all personas but the source.

    One row per model and kind of cosine (rho, p, min_p, n), the assistant among the personas.
    """
    rates = rates[rates["scorer"] == scorer]
    cosines = cosines[(cosines["layer"] == layer) & (cosines["method"] == method)]
    by_model = {key: frame for key, frame in cosines.groupby(["run", "seed", "checkpoint"])}
    rows = []
    for model in models[models["arm"].isin(TRAINED_ARMS)].to_dict("records"):
        key = (model["run"], model["seed"], model["checkpoint"])
        if key not in by_model:
            continue
        of = by_model[key]
        near = of[(of["a"] == model["source"]) | (of["b"] == model["source"])]
        near = near.assign(persona=np.where(near["a"] == model["source"], near["b"], near["a"]))
        leak = rates[(rates["run"] == key[0]) & (rates["seed"] == key[1]) & (rates["checkpoint"] == key[2])]
        both = near.merge(leak[["persona", "rate"]], on="persona")
        for kind in KINDS:
            seed = statistics.stable_seed(*key, kind)
            rows.append({**model, "kind": kind} | _as_row(block_tests.spearman_test(both[kind], both["rate"], seed)))
    return pd.DataFrame(rows)


def changes(table: pd.DataFrame) -> pd.DataFrame:
    """From each arm's first step to its last, and from the shared start: change of leakage, retention and cosine.

    Columns arm, source, seed, quantity (assistant, source), since, until, before, after, change, low, high (Newcombe's
    95 % interval: replies taken as independent, this training run as given).
    """
    rows = []
    for (arm, source, seed), trail in table.groupby(["arm", "source", "seed"], sort=False):
        trail = trail.sort_values("step")
        trained = trail[trail["step"] > 0]
        if trained.empty:
            continue
        last, first = trained.iloc[-1], trained.iloc[0]
        starts = [trail.iloc[0]] if trail.iloc[0]["step"] == 0 else []
        starts += [first] if first["step"] < last["step"] else []
        for start in starts:
            for role in ("assistant", "source"):
                pair = [
                    int(x) for x in (last[f"{role}_hits"], last[f"{role}_n"], start[f"{role}_hits"], start[f"{role}_n"])
                ]
                low, high = statistics.newcombe(*pair)
                before, after = start[f"{role}_rate"], last[f"{role}_rate"]
                row = {"arm": arm, "source": source, "seed": seed, "quantity": role, "since": start["step"]}
                row |= {"until": last["step"], "before": before, "after": after, "change": after - before}
                rows.append(row | {"low": low, "high": high})
    return pd.DataFrame(rows)


def _model(record: dict, checkpoint: str, arm: str, step: float, source: str | None = None) -> dict:
    row = {"run": record["run"], "seed": record["seed"], "checkpoint": checkpoint, "arm": arm, "step": step}
    return row | {"source": source or record["fields"]["source"]}


def _mean_interval(rates: pd.DataFrame) -> tuple[float, float]:
    """Interval of a mean of independent rates: the distances of each to its own bounds add in squares.

    The rule behind Newcombe's interval for a difference, for a mean.
    """
    if rates.empty:
        return math.nan, math.nan
    mean = rates["rate"].mean()
    below = math.sqrt(((rates["rate"] - rates["low"]) ** 2).sum()) / len(rates)
    above = math.sqrt(((rates["high"] - rates["rate"]) ** 2).sum()) / len(rates)
    return max(0.0, mean - below), min(1.0, mean + above)


def _trails(table: pd.DataFrame, with_start: bool):
    """((arm, kind of cosine), its rows) of every trained arm, without the shared start unless `with_start`."""
    table = table[table["arm"].isin(TRAINED_ARMS) & ((table["step"] > 0) | with_start)]
    for arm, trail in table.groupby("arm"):
        for kind in KINDS:
            if trail[kind].notna().any():
                yield (arm, kind), trail[trail[kind].notna()]


def _blocks(trail: pd.DataFrame, column: str) -> np.ndarray | None:
    """(sources, steps) of one column; None unless every source has every step."""
    wide = trail.pivot(index="source", columns="step", values=column)
    return None if wide.isna().any(axis=None) else wide.to_numpy(float)


def _as_row(test: statistics.PermutationTest) -> dict:
    return {"rho": test.statistic, "p": test.p, "min_p": test.min_p, "n": test.n, "how": test.method}
