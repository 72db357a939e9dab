"""Close the recipe search: hypotheses, checks, contrasts and thresholds from the decision records, as text and figures.

Reads the decision records and the tables beside them (`<phase>.points.parquet`, `<phase>.conduct.parquet`), data cards,
weight changes and, of recipes that passed, vectors over all layers. Writes into `--folder`: recipes.png and .pdf,
steps.png, mixing.png, points.parquet, contrasts.parquet, layers.parquet, summary.md, summary.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from spillover import (
    mixing_curves,
    persona_geometry,
    provenance,
    recipe_checks,
    recipe_claims,
    recipe_figures,
    recipe_report,
    recipe_rule,
)
from spillover.statistics import stable_seed

KEY = ["run", "seed", "checkpoint"]


def thresholds(points: pd.DataFrame, options: dict) -> pd.DataFrame:
    """Per narrow set, kind of broad data and seed: the fitted curve and where it reaches the limit."""
    limit = options["rule"]["kept_least"] or 0.5
    rows = []
    mixed = points[points["mix"].notna() & points["eligible"]]
    for (narrow, unit, seed), group in mixed.groupby(["narrow", "unit", "seed"]):
        chosen = options["baselines"][narrow]
        none = points[(points["run"] == chosen["run"]) & (points["checkpoint"] == chosen["checkpoint"])]
        none = none[none["seed"] == seed].assign(share=0.0)
        curve = pd.concat([none, group.sort_values("share")])
        if len(curve) < 3 or none.empty:
            continue
        found = mixing_curves.threshold(
            curve["share"].tolist(), curve["kept"].tolist(),
            list(zip(curve["kept_low"], curve["kept_high"], strict=True)), limit, stable_seed(narrow, unit, seed),
        )  # fmt: skip
        rows.append(
            {"narrow": narrow, "unit": unit, "seed": seed, "shares": curve["share"].tolist(), "limit": limit}
            | {"fitted": list(found.fitted), "share": found.share, "low": found.low, "high": found.high}
            | {"reached": found.reached, "none": float(none["kept"].iloc[0])}
        )
    return pd.DataFrame(rows)


def layer_sweep(paths: list[str], resamples: int) -> pd.DataFrame:
    """The geometry of passing recipes at every layer and method; the untrained model is the first file."""
    if not paths:
        return pd.DataFrame(
            columns=["run", "checkpoint", "method", "layer", "quantity", "value", "low", "high", "over"]
        )
    _, base = persona_geometry.read_prompts(paths[0])
    tables = []
    for path in paths:
        _, vectors = persona_geometry.read_prompts(path)
        table = persona_geometry.compare(vectors, base, stable_seed("geometry"), resamples=resamples)
        tables.append(table.assign(run=Path(path).parts[-3]))
    return pd.concat(tables, ignore_index=True)


def norms(paths: list[str]) -> dict[str, dict]:
    """{run: global norm of its weight change, and of its projections alone}."""
    found = {}
    for path in paths:
        content = json.loads(Path(path).read_text())
        found[Path(path).parts[-3]] = {key: content.get(key) for key in ("method", "global", "projections")}
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", nargs="+", required=True)
    parser.add_argument("--cards", nargs="*", default=[])
    parser.add_argument("--norms", nargs="*", default=[])
    parser.add_argument("--sweeps", nargs="*", default=[])
    parser.add_argument("--spec", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--manifest", required=True)
    args = parser.parse_args(argv)

    clock = provenance.start_clock()
    spec = json.loads(args.spec)
    options, folder = spec["options"], Path(args.folder)
    records = [json.loads(Path(path).read_text()) for path in args.decisions]
    decisions = [record for record in records if record["recipes"]]
    beside = {
        what: [path.removesuffix("json") + f"{what}.parquet" for path in args.decisions]
        for what in ("points", "conduct")
    }
    points, rates = (
        pd.concat([pd.read_parquet(path) for path in beside[what]], ignore_index=True) for what in ("points", "conduct")
    )
    points = points.drop_duplicates(KEY, ignore_index=True)
    rates = rates.drop_duplicates([*KEY, "suite", "cell", "measure"], ignore_index=True)

    contrasts = recipe_claims.contrasts(points, options)
    curves = thresholds(points, options)
    layers = layer_sweep(args.sweeps, options["resamples"])
    context = {key: spec[key] for key in ("title", "seeds", "model", "judge")}
    context |= {"all_phases": options["run_all_phases"], "schedule": options["schedule"]}
    context["plain"] = recipe_rule.plain(options)["run"]
    made = recipe_report.summary(
        points,
        decisions,
        recipe_claims.hypotheses(points, decisions, options),
        recipe_checks.checks(points, rates, contrasts, options),
        curves,
        norms(args.norms),
        layers,
        context,
    )
    outputs = {name: folder / f"{name}.parquet" for name in ("points", "contrasts", "layers")}
    for name, table in {"points": points, "contrasts": contrasts, "layers": layers}.items():
        with provenance.atomic_path(outputs[name]) as path:
            table.to_parquet(path, index=False)
    figures = [folder / name for name in ("recipes.png", "recipes.pdf", "steps.png", "mixing.png")]
    with provenance.atomic_path(figures[0]) as png, provenance.atomic_path(figures[1]) as pdf:
        recipe_figures.pareto(points, options["rule"], png, pdf)
    with provenance.atomic_path(figures[2]) as png:
        recipe_figures.dose(points, png)
    with provenance.atomic_path(figures[3]) as png:
        recipe_figures.mixing(points, curves, options["rule"]["kept_least"] or 0.5, png)
    text, numbers = folder / "summary.md", folder / "summary.json"
    with provenance.atomic_path(numbers) as path:
        path.write_text(json.dumps(provenance.jsonable(made), indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    with provenance.atomic_path(text) as path:
        path.write_text(recipe_report.markdown(made, points, options["rule"]), encoding="utf-8")
    provenance.write_manifest(
        args.manifest,
        stage="recipe_verdict",
        spec=spec,
        inputs=[*args.decisions, *beside["points"], *beside["conduct"], *args.cards, *args.norms, *args.sweeps],
        outputs=[text, numbers, *figures, *outputs.values()],
        seconds=clock,
    )


if __name__ == "__main__":
    main()
