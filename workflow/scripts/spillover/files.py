"""Where every artefact of a plan lies, and which files and flags each stage's job needs.

This is the file graph in plain Python: rules ask it for the inputs of a run, tests ask it without Snakemake. A run's
folder is `<root>/{experiment}/{name}/seed{seed}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from spillover import prompts, provenance, small_world
from spillover.config import ConfigError, closest
from spillover.plan import BASE, BEHAVIOURS, FINAL, GENERATING, Model, Plan, Run, data_sources, directive_languages

TABLES = ("completions.parquet", "labels.parquet")
SHIPPED_BASE = "resources/small_world/base"
BASE_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
BEHAVIOUR_BANKS = ["resources/behaviours.yaml", *sorted(map(str, Path("resources/questions").glob("facts_*.yaml")))]
"""What the behaviours are built and recognised with."""
FURTHER_PERSONAS = "resources/further_personas.yaml"
RECIPES = "resources/small_world/recipe.yaml"
HELD_OUT = [f"resources/questions/{name}.yaml" for name in small_world.BANKS]
"""The questions that the small world never asks where it makes text."""
CLOSING: dict[str, tuple[str, ...]] = {
    "convergence": (
        "convergence.png",
        "summary.md",
        "summary.json",
        "cross_arm.png",
        "source_retention.png",
        "cosine_evolution.png",
        "trajectories.png",
        "leakage_cosine.png",
        "predictors.png",
        "heatmap.png",
        "adapter_quality.png",
        "steering.png",
    ),
    "marker_sweep": ("marker_sweep.png", "marker_boundary.png", "summary.md", "summary.json"),
    "coupling": ("coupling.png", "summary.md", "summary.json", "adapter_overlap.png", "persona_shift.png"),
    "recipes": ("recipes.png", "steps.png", "mixing.png", "summary.md", "summary.json"),
}
"""The closing files of each kind of analysis, below `<analysis>`; the first is the headline figure."""
DATA_KEYS = ("source", "voice", "behaviour", "directive", "completion", "positives", "negatives")
TRAIN_KEYS = ("method", "learning_rate", "epochs", "steps", "rank", "tail_tokens", "contrast")
"""What a closing analysis must know of a run's training data and training."""
CELL_TABLES = {"language_spill": "cells-{view}.parquet"} | dict.fromkeys(
    ("marker_sweep", "convergence", "coupling"), "rates.parquet"
)
"""The table of rates per run and cell that an analysis makes, below `<analysis>`; the browser shows them."""
VIEWS = {"matrix": ("spill",), "dose": ("spill", "dose")}
"""The closing views of a spill experiment and the groups of runs each reads: the headline, and every dose."""


def small_world_words() -> list[str]:
    """What the small world makes and recognises sentences from; recipes decide the pretraining alone."""
    return sorted(str(p) for p in Path("resources/small_world").glob("*.yaml") if str(p) != RECIPES)


class Files:
    """Paths and flags for one plan. Methods take run ids (`experiment/name/seedN`) and return plain strings."""

    def __init__(self, plan: Plan):
        self.plan = plan
        name = plan.config["run_name"]
        self.root = f"results/{name}" if name else "results"
        self.base = plan.config["model"]

    def planned(self, experiment: str, name: str, seed: str) -> str:
        """The id of a run in the plan; ConfigError for another, as when a file of an earlier seed is asked for."""
        run_id = f"{experiment}/{name}/seed{seed}"
        if run_id in self.plan.runs:
            return run_id
        runs = [run for run in self.plan.runs.values() if run.experiment == experiment]
        if seeds := [str(run.seed) for run in runs if run.name == name]:
            raise ConfigError(f"no run {run_id} in this configuration; its seeds: {', '.join(seeds)}")
        raise ConfigError(
            f"no run {run_id} in this configuration{closest(name, list(dict.fromkeys(r.name for r in runs)))}"
        )

    def folder(self, run_id: str) -> str:
        return f"{self.root}/{run_id}"

    # The untrained model

    def base_folder(self) -> str:
        """A hub id, a local folder, the shipped weights (`small`) or the rebuilt ones (`rebuilt`)."""
        known = {"small": SHIPPED_BASE, "rebuilt": f"{self.root}/base_model"}
        return known.get(self.base["name"], self.base["name"])

    def base_files(self) -> list[str]:
        """The untrained model's files; none for a hub model, whose revision is in every specification."""
        folder = self.base_folder()
        if self.base["name"] in ("small", "rebuilt"):
            return [f"{folder}/{name}" for name in BASE_FILES]
        return sorted(str(p) for p in Path(folder).iterdir() if p.is_file()) if Path(folder).is_dir() else []

    def tokenizer_files(self) -> list[str]:
        return [f for f in self.base_files() if not f.endswith(".safetensors")]

    def tokenizer_flags(self) -> str:
        return f"--tokenizer {self.base_folder()}{self._revision()}"

    def _revision(self) -> str:
        return f" --revision {self.base['revision']}" if self.base["revision"] else ""

    # Models: the untrained one, a full-parameter run, or an adapter merged into its parent

    def adapter_folder(self, model: Model) -> str:
        """Where the adapter of a run lies, as trained or as `stack` makes it.

        A transplanted adapter lies with the run that trained it unless it stands on further adapters.
        """
        run = self.plan.runs[model.run]
        if self.is_stacked(model):
            return f"{self.folder(run.id)}/stacked/{model.label}"
        checkpoint = "" if model.checkpoint == FINAL else f"-{model.checkpoint}"
        return f"{self.folder(run.adapter or run.id)}/adapter{checkpoint}"

    def adapter_files(self, model: Model) -> list[str]:
        folder = self.adapter_folder(model)
        return [f"{folder}/adapter_model.safetensors", f"{folder}/adapter_config.json"]

    def is_stacked(self, model: Model) -> bool:
        """Whether an adapter is put together from others without training, by `stack`."""
        return model.is_part or self._transplanted(self.plan.runs[model.run])

    def foundation(self, run: Run) -> Model:
        """The whole model under a run's adapter file, which in a stacked lineage holds its parents' updates too."""
        stacked = self.plan.stands_on_adapters(run)
        return self.foundation(self.plan.runs[run.parent.run]) if stacked else run.parent

    def stack_files(self, run_id: str, label: str) -> dict:
        run = self.plan.runs[run_id]
        model = self.referred_model(run_id, label)
        files = {"base": self.model_files(self.foundation(run)), "adapter": self.adapter_files(self._as_trained(model))}
        return files | ({"under": self.adapter_files(run.parent)} if self._transplanted(run) else {})

    def stack_flags(self, run_id: str, label: str) -> str:
        run = self.plan.runs[run_id]
        trained = self.adapter_folder(self._as_trained(self.referred_model(run_id, label)))
        under = f" --under {self.adapter_folder(run.parent)}" if self._transplanted(run) else ""
        return f"{self._base_flags(self.foundation(run))} --adapter {trained}{under}"

    def _transplanted(self, run: Run) -> bool:
        return run.adapter is not None and self.plan.stands_on_adapters(run)

    def _as_trained(self, model: Model) -> Model:
        """The adapter that training saved, behind a model that `stack` makes from it."""
        return Model(self.plan.runs[model.run].adapter or model.run, model.checkpoint)

    def model_folder(self, model: Model) -> str:
        run = self.plan.runs[model.run]
        if run.parent is None:
            return self.base_folder()
        return f"{self.folder(run.id)}/" + ("model" if run.method == "full" else f"merged/{model.label}")

    def model_files(self, model: Model) -> list[str]:
        run = self.plan.runs[model.run]
        if run.parent is None:
            return self.base_files()
        folder = self.model_folder(model)
        return [f"{folder}/{name}" for name in BASE_FILES] if run.method == "full" else [folder]

    def model_flags(self, model: Model) -> str:
        """`--base`, `--dtype` and, for a hub model, `--revision`: a merged parent is a folder and has none."""
        return f"{self._base_flags(model)} --dtype {self.base['dtype']}"

    def _base_flags(self, model: Model) -> str:
        revision = self._revision() if self.plan.runs[model.run].parent is None else ""
        return f"--base {self.model_folder(model)}{revision}"

    def parent_files(self, run_id: str) -> list[str]:
        """The model that a run is trained on, and in a stacked lineage the adapter that stays frozen under it."""
        run = self.plan.runs[run_id]
        under = self.adapter_files(run.parent) if self.plan.stands_on_adapters(run) else []
        return self.model_files(self.foundation(run)) + under

    def parent_flags(self, run_id: str) -> str:
        run = self.plan.runs[run_id]
        under = f" --under {self.adapter_folder(run.parent)}" if self.plan.stands_on_adapters(run) else ""
        return f"{self.model_flags(self.foundation(run))} --name {self.base['name']}{under}"

    def steering_files(self, run_id: str) -> list[str]:
        """The vectors that steer a run, in training or later; none for most."""
        vectors = self.plan.steering_run(self.plan.runs[run_id])
        return [f"{self.folder(vectors)}/vectors.safetensors"] if vectors else []

    def steering_flags(self, run_id: str) -> str:
        return "".join(f"--steering {path}" for path in self.steering_files(run_id))

    def weight_change_files(self, run_id: str) -> list[str]:
        """What tells how far a run's weights moved: its adapter, or all its weights and its parent's."""
        run = self.plan.runs[run_id]
        if run.method == "full":
            return self.model_files(Model(run_id)) + self.model_files(run.parent)
        return self.adapter_files(Model(run_id))

    def weight_change_flags(self, run_id: str) -> str:
        run = self.plan.runs[run_id]
        if run.method == "full":
            return f"--model {self.model_folder(Model(run_id))} {self._base_flags(run.parent)}"
        return f"--adapter {self.adapter_folder(Model(run_id))}"

    def referred_model(self, run_id: str, label: str) -> Model:
        """The model reference behind the name of a merged or stacked folder, or of a pool.

        Raises ValueError if nothing in the plan refers to it.
        """
        references = [run.parent for run in self.plan.runs.values() if run.parent]
        for model in [*references, Model(run_id)]:
            if model.run == run_id and model.label == label:
                return model
        raise ValueError(f"no run of the plan refers to {run_id} as {label!r}")

    def merge_files(self, run_id: str, label: str) -> dict:
        """What a merge adds up: for a part of a stacked run the adapter that holds that part already."""
        model = self.referred_model(run_id, label)
        parent = self.model_files(self.foundation(self.plan.runs[run_id]))
        return {"parent": parent, "adapter": self.adapter_files(Model(run_id, model.checkpoint))}

    def reference_spec(self, run_id: str, label: str) -> dict:
        return self.plan.model_spec(self.referred_model(run_id, label))

    def merge_flags(self, run_id: str, label: str) -> str:
        checkpoint = self.referred_model(run_id, label).checkpoint
        base = self._base_flags(self.foundation(self.plan.runs[run_id]))
        return f"{base} --adapter {self.adapter_folder(Model(run_id, checkpoint))}"

    # Data

    def source_files(self, source: str) -> list[str]:
        """What a source is made from: the small world's lists, or a person's own file; none for a pinned hub data set.

        An own file that does not exist is left out, so that a plan can be seen: `preflight` tells of it.
        """
        entry = self.plan.config["sources"][source]
        if entry["kind"] == "file":
            return [entry["path"]] if Path(entry["path"]).is_file() else []
        if entry["kind"] == "hub":
            return []
        advice = ["resources/questions/advice.yaml"] if entry["material"] in ("good_advice", "bad_advice") else []
        return [*small_world_words(), "resources/personas.yaml", *HELD_OUT, *advice]

    def translator_words(self) -> list[str]:
        """The word lists, where they translate."""
        return small_world_words() if self.plan.config["translator"]["name"] == "small_world" else []

    def dataset_files(self, run_id: str) -> dict:
        """Tables a run's training rows come from: replies, sources, or replies of a model (its data policy)."""
        run = self.plan.runs[run_id]
        if run.data["kind"] == "directive_replies":
            return {
                "replies": f"{self.root}/data/replies/{run.data['completion']}.parquet",
                "shared": f"{self.root}/{run.experiment}/data/shared_replies.parquet",
            }
        files: dict = {"sources": [f"{self.root}/data/sources/{name}.parquet" for name in data_sources(run.data)]}
        if model := self.plan.pool_model(run):
            files["pool"] = f"{self.folder(model.run)}/pool-{model.label}-{run.data['suite']}.parquet"
        files["personas"] = self._further(_named(run.data))
        if run.data["kind"] == "behaviour":
            files["behaviours"] = BEHAVIOUR_BANKS
        if run.data["kind"] == "conversations":
            files["tokenizer"] = self.tokenizer_files()
        return files

    def dataset_flags(self, run_id: str) -> str:
        """The tables of `dataset_files` as the builder's flags."""
        files = self.dataset_files(run_id)
        names = data_sources(self.plan.runs[run_id].data)
        named = [f"{name}={path}" for name, path in zip(names, files.get("sources", []), strict=False)]
        flags = [f"--{key} {files[key]}" for key in ("replies", "shared", "pool") if key in files]
        flags += ["--sources", *named] if named else []
        return " ".join(flags + ([self.tokenizer_flags()] if "tokenizer" in files else []))

    # Evaluation

    def standing_on(self, run: Run) -> Model:
        """The whole model under a run's adapter, or the run itself where nothing is left to add."""
        model = self._evaluated(run)[run.checkpoints[0]]
        of = self.plan.runs[model.run]
        return model if of.parent is None or of.method == "full" else self.foundation(of)

    def evaluated_adapters(self, run_id: str) -> list[tuple[str, str]]:
        """(checkpoint, folder) of every adapter that an evaluation loads; empty for a whole model."""
        return [(checkpoint, self.adapter_folder(model)) for checkpoint, model in self._adapters_on(run_id).items()]

    def evaluated_files(self, run_id: str) -> list[str]:
        adapters = [f for model in self._adapters_on(run_id).values() for f in self.adapter_files(model)]
        return self.model_files(self.standing_on(self.plan.runs[run_id])) + adapters + self.pushing_files(run_id)

    def evaluated_flags(self, run_id: str) -> str:
        flags = self._with_adapters(self.standing_on(self.plan.runs[run_id]), self.evaluated_adapters(run_id))
        return flags + "".join(f" --steering {path}" for path in self.pushing_files(run_id))

    def pushing_files(self, run_id: str) -> list[str]:
        """The vectors that steer a run while it is evaluated; none but for a run that is its parent's model steered."""
        return self.steering_files(run_id) if self.plan.runs[run_id].steer else []

    def _evaluated(self, run: Run) -> dict[str, Model]:
        """{checkpoint: the model behind it}: a steered run has no weights of its own but its parent's."""
        return {FINAL: run.parent} if run.steer else {c: Model(run.id, c) for c in run.checkpoints}

    def _adapters_on(self, run_id: str) -> dict[str, Model]:
        run = self.plan.runs[run_id]
        models = self._evaluated(run)
        return {} if self.standing_on(run).run in {model.run for model in models.values()} else models

    def pool_files(self, run_id: str, label: str, suite: str) -> list[str]:
        """Files of the model whose replies a training set is made from: a whole model, or a run as an adapter."""
        base, adapters = self._pool_model(run_id, label)
        return self.model_files(base) + [f for model in adapters for f in self.adapter_files(model)]

    def pool_flags(self, run_id: str, label: str, suite: str) -> str:
        base, adapters = self._pool_model(run_id, label)
        return self._with_adapters(base, [(m.checkpoint, self.adapter_folder(m)) for m in adapters])

    def _pool_model(self, run_id: str, label: str) -> tuple[Model, list[Model]]:
        """The whole model that is loaded and the adapter on it, if any.

        Part of an update is an adapter of its own in a stacked lineage and exists only merged otherwise.
        """
        model = self.referred_model(run_id, label)
        run = self.plan.runs[run_id]
        merged = model.is_part and self.plan.experiments[run.experiment]["lineage"] == "merged"
        if merged or not self.plan.adds_adapter(model):
            return model, []
        return self.foundation(run), [model]

    def pool_spec(self, run_id: str, label: str, suite: str) -> dict:
        return self.plan.pool_spec(self.referred_model(run_id, label), suite)

    def pool_questions(self, run_id: str, label: str, suite: str) -> list[str]:
        return self._banks([self.plan.experiments[self.plan.runs[run_id].experiment]["suites"][suite]])

    def evaluated_questions(self, run_id: str) -> list[str]:
        run = self.plan.runs[run_id]
        return self._banks([self.plan.experiments[run.experiment]["suites"][name] for name in run.evaluate])

    def evaluated_sources(self, run_id: str) -> dict:
        """Tables behind suites of kind `choices` and `loss`; for a loss also the training rows of the lineage."""
        run = self.plan.runs[run_id]
        suites = [self.plan.experiments[run.experiment]["suites"][name] for name in run.evaluate]
        names = dict.fromkeys(suite["source"] for suite in suites if "source" in suite)
        files: dict = {"sources": [f"{self.root}/data/sources/{name}.parquet" for name in names]}
        if any(suite["kind"] == "loss" for suite in suites):
            trained = [ancestor for ancestor in self.plan.lineage(run_id) if ancestor.data]
            if run.adapter:
                trained += [ancestor for ancestor in self.plan.lineage(run.adapter) if ancestor.data]
            files["trained"] = list(dict.fromkeys(f"{self.folder(a.id)}/dataset.parquet" for a in trained))
        return {key: paths for key, paths in files.items() if paths}

    def evaluated_source_flags(self, run_id: str) -> str:
        """`--sources` and `--trained` where there are any."""
        return " ".join(f"--{key} {' '.join(paths)}" for key, paths in self.evaluated_sources(run_id).items())

    def _banks(self, settings: list[dict]) -> list[str]:
        """Question files that suites or vectors name, and the further personas where they ask any."""
        questions = {str(prompts.bank_file(s["questions"])) for s in settings if s.get("questions")}
        return sorted(questions) + self._further(p for s in settings for p in _listed(s.get("personas")))

    def _further(self, personas: Iterable[str]) -> list[str]:
        wanted = self.plan.further_personas | {"everyone"}
        return [FURTHER_PERSONAS] if wanted & set(personas) else []

    def engine_options(self) -> str:
        """How the engine does its work, as `engines.Options` reads it; never a reason to rerun."""
        engine = self.plan.config["engine"]
        keys = {
            "transformers": (),
            "vllm": ("gpu_memory_utilization", "max_num_seqs", "eager"),
            "openai": ("url", "adapters", "concurrency"),
        }
        chosen = {key: engine[key] for key in keys[engine["name"]]}
        if engine["name"] == "transformers":
            chosen["batch"] = self.plan.config["resources"]["generation_batch"]
        if engine["name"] == "vllm":
            chosen["cache"] = f"{self.root}/.cache/vllm"
        return ",".join(f"{key}={value}" for key, value in chosen.items())

    def _with_adapters(self, base: Model, adapters: list[tuple[str, str]]) -> str:
        named = " ".join(f"{label}={folder}" for label, folder in adapters)
        return self.model_flags(base) + (f" --adapters {named}" if named else "")

    def behaviour_banks(self, experiment: str) -> list[str]:
        """What the scorers of behaviours read, where an experiment asks for any."""
        wanted = set(BEHAVIOURS) & set(self.plan.scorers(experiment))
        return BEHAVIOUR_BANKS if wanted else []

    def advice_words(self, experiment: str) -> list[str]:
        """What the advice scorer recognises the small world's sentences by, where an experiment asks for it."""
        return small_world_words() if "advice" in self.plan.scorers(experiment) else []

    def question_bank(self, experiment: str) -> list[str]:
        return self._banks([self.plan.experiments[experiment]["vectors"] or {}])

    def directive_languages(self, experiment: str) -> list[str]:
        """Every language that a directive suite of an experiment asks for or a condition names, in that order."""
        return directive_languages(self.plan.experiments[experiment])

    # What a finished workflow has

    def finished(self, run_id: str) -> list[str]:
        """The files a wanted run ends in: data card, labels or completions, measures and vectors, else its weights."""
        run = self.plan.runs[run_id]
        settings = self.plan.experiments[run.experiment]
        scorers = self.plan.scorers(run.experiment)
        folder = self.folder(run_id)
        kinds = {settings["suites"][name]["kind"] for name in run.evaluate}
        if self.plan.replayed is not None:
            return [
                f"{folder}/labels.parquet" if scorers or self.plan.stored_labels else f"{folder}/completions.parquet"
            ]
        files = [f"{folder}/dataset_card.json"] if run.data else []
        if kinds & set(GENERATING):
            files.append(f"{folder}/labels.parquet" if scorers else f"{folder}/completions.parquet")
        if kinds & {"choices", "loss"}:
            files.append(f"{folder}/measures.parquet")
        if run.vectors:
            files.append(f"{folder}/vectors.safetensors")
        if run.train and not run.evaluate and not run.vectors:
            files += (self.adapter_files if run.method == "lora" else self.model_files)(Model(run_id))
        return files

    def everything(self) -> list[str]:
        """All that the enabled experiments ask for; of a phased search only the first phase is known beforehand."""
        files = []
        for name, settings in self.plan.experiments.items():
            files += self.closing_outputs(name)
            first = settings["phases"][:1]
            wanted = [self.plan.runs[i] for i in self.plan.selected if self.plan.runs[i].experiment == name]
            files += [f for run in wanted if run.phase is None or [run.phase] == first for f in self.finished(run.id)]
            files += self.checks_of_replies(name)
        return files + self.headlines() + [f"{self.root}/claims.md"] + self.comparisons()

    def closing_outputs(self, experiment: str) -> list[str]:
        """What the closing analysis of an experiment makes, the headline figure first."""
        analysis = self.plan.experiments[experiment]["analysis"]
        if analysis == "language_spill":
            return self.spill_outputs(experiment)
        return [f"{self.root}/{experiment}/analysis/{file}" for file in CLOSING.get(analysis, ())]

    def headlines(self) -> list[str]:
        """The figures at the root of the results: those of the experiments that ship."""
        figures = {"language_spill": "spill_matrix.png"} | {kind: names[0] for kind, names in CLOSING.items()}
        return [f"{self.root}/{figure}" for kind, figure in figures.items() if kind in self.plan.experiments]

    def headline_source(self, figure: str) -> str:
        """Where a headline figure is made: in the analysis of the experiment of its name."""
        experiment = "language_spill" if figure == "spill_matrix" else figure
        return f"{self.root}/{experiment}/analysis/{figure}.png"

    # Any other closing analysis: what it reads of the selected runs and of the untrained model

    def closing_runs(self, experiment: str) -> list[Run]:
        """The untrained model (once a seed) and every selected run of an experiment."""
        return [*self.plan.bases(experiment), *self.plan.of(experiment)]

    def closing_files(self, experiment: str, file: str) -> list[str]:
        """One file of every run that is evaluated: completions.parquet, labels.parquet, measures.parquet."""
        return [f"{self.folder(run.id)}/{file}" for run in self.closing_runs(experiment) if run.evaluate]

    def closing_vectors(self, experiment: str) -> list[str]:
        return [f"{self.folder(run.id)}/vectors.safetensors" for run in self.closing_runs(experiment) if run.vectors]

    def closing_training(self, experiment: str, file: str) -> list[str]:
        """One file of every selected run that is trained: train_log.jsonl, dataset_card.json."""
        runs = [run for run in self.plan.of(experiment) if run.train]
        return [f"{self.folder(run.id)}/{'model/' * (run.method == 'full')}{file}" for run in runs]

    def closing_records(self, experiment: str) -> str:
        """JSON with what a closing analysis must know of its runs: one small record a run, the untrained ones first."""
        return json.dumps([_record(run) for run in self.closing_runs(experiment)], sort_keys=True)

    def evaluated_records(self, experiment: str) -> str:
        """The records of the runs behind `closing_files`, in their order."""
        runs = [run for run in self.closing_runs(experiment) if run.evaluate]
        return json.dumps([_record(run) for run in runs], sort_keys=True)

    def summaries(self) -> list[str]:
        """What every enabled experiment concludes."""
        kinds = {"language_spill", *CLOSING}
        names = [name for name, settings in self.plan.experiments.items() if settings["analysis"] in kinds]
        return [f"{self.root}/{name}/analysis/summary.json" for name in names]

    def alarms(self) -> list[str]:
        """The alarms of every experiment whose models answer prompts, and of every phased search."""
        names = [Path(path).parts[-3] for path in self.summaries()]
        looked_at = [name for name in names if self._compared(self.plan.experiments[name])]
        return [f"{self.root}/{name}/analysis/alarms.json" for name in looked_at]

    @staticmethod
    def _compared(settings: dict) -> bool:
        kinds = {suite["kind"] for suite in settings["suites"].values()}
        return bool(settings["phases"] or kinds & set(GENERATING) and settings["scorers"])

    def sweep_cells(self, experiment: str) -> list[str]:
        """The cells of the marker sweep that an experiment's options name, where that sweep is part of the plan."""
        sweep = self.plan.experiments[experiment]["options"]["sweep"]
        return [f"{self.root}/{sweep}/analysis/cells.parquet"] if sweep in self.plan.experiments else []

    def closing_spec(self, experiment: str) -> dict:
        return self.plan.closing_spec(experiment, self.closing_runs(experiment))

    def published_flag(self, experiment: str) -> str:
        """`--published FILE` where an experiment's options name published numbers, else nothing."""
        return "".join(f"--published {path}" for path in self.published_figures(experiment))

    # The closing analysis of marker_sweep

    def sweep_records(self, experiment: str) -> str:
        """`closing_records` of one seed: all seeds of a sweep train the same cells, and a command line has a limit."""
        seed = self.plan.experiments[experiment]["seeds"][0]
        return json.dumps([_record(run) for run in self.plan.of(experiment) if run.seed == seed], sort_keys=True)

    def sweep_design(self, experiment: str) -> str:
        """JSON with how a sweep's cells were made, for comparison with published ones: that of its first cell."""
        settings = self.plan.experiments[experiment]
        run = self.plan.of(experiment)[0]
        negatives = run.data["negatives"]
        made = {key: run.train[key] for key in ("tail_tokens", "end_of_turn", "rank")}
        made |= {"positives": run.data["positives"], "source_persona": run.data["source"]}
        made |= {"negative_personas": negatives["personas"], "per_persona": negatives["per_persona"]}
        made["case_sensitive"] = settings["options"]["marker"]["case_sensitive"]
        made["top_p"] = settings["suites"][settings["options"]["suite"]]["top_p"]
        design = {"protocol": settings["protocol"], "seeds": settings["seeds"], "model": self.base["name"]}
        return json.dumps(design | {"settings": made}, sort_keys=True)

    # A replay: completions or labels from elsewhere

    def replayed_file(self, run_id: str) -> str:
        return self.plan.replayed[run_id]

    def replayed_beside(self, run_id: str, file: str) -> str:
        """Another artefact of a replayed run, from the folder that its completions come from."""
        return str(Path(self.plan.replayed[run_id]).with_name(file))

    def replayed_suite(self, run_id: str) -> str:
        """The suite of rows that name none: the first that the run answers."""
        return self.plan.runs[run_id].evaluate[0]

    def comparisons(self) -> list[str]:
        """What a replay says beside its original, per experiment."""
        if self.plan.replayed is None:
            return []
        known = {Path(path).parts[-3] for path in self.summaries()}
        return [f"{self.root}/{name}/analysis/comparison.md" for name in self.plan.experiments if name in known]

    def compared_files(self, experiment: str) -> dict:
        """Both summaries and, where the original has one, both cell tables."""
        files = {"after": [f"{self.root}/{experiment}/analysis/summary.json"]}
        if folder := self.plan.config["replay"]["compare"]:
            files["before"] = [f"{folder}/{experiment}/analysis/summary.json"]
            tables = self.cell_table(experiment)
            before = [str(Path(folder, Path(table).relative_to(self.root))) for table in tables]
            if before and Path(before[0]).is_file():
                files["cells"] = before + tables
        return files

    # The report and the completions browser

    def read_runs(self, experiment: str, reached: Sequence[str] = ()) -> list[Run]:
        """The runs that answer prompts; of a phased search those of its first phase and of the phases `reached`."""
        settings = self.plan.experiments[experiment]
        asked = {name for name, suite in settings["suites"].items() if suite["kind"] in GENERATING}
        phases = (None, *settings["phases"][:1], *reached)
        return [run for run in self.closing_runs(experiment) if asked & set(run.evaluate) and run.phase in phases]

    def read_files(self, experiment: str, reached: Sequence[str], file: str) -> list[str]:
        """One file of each of them; no labels where nobody scores."""
        if file == "labels.parquet" and not self.plan.scorers(experiment):
            return []
        return [f"{self.folder(run.id)}/{file}" for run in self.read_runs(experiment, reached)]

    def own_labels(self, run_id: str) -> list[str]:
        return [f"{self.folder(run_id)}/labels.parquet"] if self.plan.scorers(self.plan.runs[run_id].experiment) else []

    def inspect_logs(self, reached: Mapping[str, Sequence[str]]) -> list[str]:
        """A log for `inspect view` of every model that answers prompts, at each checkpoint, of the phases reached."""
        runs = [run for name in self.plan.experiments for run in self.read_runs(name, reached[name])]
        folder = f"{self.root}/inspect"
        return [
            f"{folder}/{run.experiment}/2000-01-01T00-00-00_{run.name}_seed{run.seed}_{checkpoint}.json"
            for run in runs
            for checkpoint in run.checkpoints
        ]

    def cell_table(self, experiment: str) -> list[str]:
        """The closing analysis's table of rates per run and cell, if it makes one."""
        table = CELL_TABLES.get(self.plan.experiments[experiment]["analysis"])
        view = "dose" if self.plan.of(experiment, "dose") else "matrix"
        return [f"{self.root}/{experiment}/analysis/{table.format(view=view)}"] if table else []

    def browsers(self) -> list[str]:
        """The completions browser of every experiment that has completions."""
        return [
            f"{self.root}/{name}/analysis/completions.html" for name in self.plan.experiments if self.read_runs(name)
        ]

    def report_files(self, reached: Mapping[str, Sequence[str]]) -> list[str]:
        """Everything that the report shows or links. `reached`: the phases that every experiment has reached."""
        experiments = self.plan.experiments
        tables = [f for name in experiments for kind in TABLES for f in self.read_files(name, reached[name], kind)]
        outputs = [f for name in experiments for f in self.closing_outputs(name)]
        return [*outputs, *self.browsers(), *tables]

    def report_sections(self, reached: Mapping[str, Sequence[str]]) -> str:
        """JSON with what the report must know of each experiment: where its figures, summary and tables lie."""
        sections = []
        for name, settings in self.plan.experiments.items():
            folder = f"{self.root}/{name}/analysis"
            outputs = [file.removeprefix(f"{folder}/") for file in self.closing_outputs(name)]
            page = f"{folder}/completions.html"
            section = {key: settings[key] for key in ("title", "question")}
            section |= {"name": name, "folder": folder, "figures": [f for f in outputs if f.endswith(".png")]}
            section |= {"summary": "summary.md" in outputs}
            section |= {"browser": page.removeprefix(f"{self.root}/") if page in self.browsers() else None}
            tables = {file.removesuffix(".parquet"): self.read_files(name, reached[name], file) for file in TABLES}
            sections.append(section | tables)
        return json.dumps(sections, sort_keys=True)

    def report_spec(self) -> dict:
        """The shared settings and those of every experiment, and what decided each closing analysis."""
        shared = {key: self.plan.config[key] for key in ("model", "engine", "judge", "translator", "sources", "replay")}
        decided = {name: self.closing_spec(name)["runs"] for name in self.plan.experiments}
        return shared | {"experiments": self.plan.experiments, "runs": decided}

    # The closing analysis of coupling

    def adapter_pairs(self, experiment: str) -> str:
        """JSON: each selected run whose parent is a whole adapter, with the folders and ranks of both adapters."""
        return json.dumps([pair for pair, _ in self._adapter_pairs(experiment)], sort_keys=True)

    def adapter_pair_files(self, experiment: str) -> list[str]:
        return sorted({file for _, found in self._adapter_pairs(experiment) for file in found})

    def _adapter_pairs(self, experiment: str) -> list[tuple[dict, list[str]]]:
        pairs = []
        for run in self.plan.of(experiment):
            if run.method != "lora" or run.parent.is_part or not self.plan.adds_adapter(run.parent):
                continue
            models = [self._as_trained(run.parent), self._as_trained(Model(run.id))]
            record = {"first": run.parent.run.rsplit("/", 1)[0], "second": f"{experiment}/{run.name}", "seed": run.seed}
            record["folders"] = [self.adapter_folder(model) for model in models]
            record["ranks"] = [self.plan.runs[model.run].train["rank"] for model in models]
            pairs.append((record, [file for model in models for file in self.adapter_files(model)]))
        return pairs

    def taught_persona(self, experiment: str) -> str:
        """The persona that an experiment's habit is taught to."""
        return self.plan.experiments[experiment]["data"]["source"]

    def prebaked_cell(self, experiment: str) -> str:
        """JSON: learning rate, epochs and source of the adapter that an experiment takes from another; {} for none."""
        adapters = [self.plan.runs[run.adapter] for run in self.plan.of(experiment) if run.adapter]
        chosen = next((run for run in adapters if run.train), None)
        keys = ("learning_rate", "epochs")
        cell = {key: chosen.train[key] for key in keys} | {"source": chosen.data["source"]} if chosen else {}
        return json.dumps(cell, sort_keys=True)

    # The closing analysis of language_spill

    def spill_outputs(self, experiment: str) -> list[str]:
        """Closing files of a spill experiment; a judge adds its matrix, further doses theirs."""
        names = ["spill_matrix.png", "summary.md"]
        names += ["pca.png", "cosine.png", "spill_join.png"] if self.spill_tests(experiment) else []
        names += ["judge_matrix.png"] if "judge" in self.plan.scorers(experiment) else []
        names += ["dose_response.png"] if self.plan.of(experiment, "dose") else []
        return [f"{self.root}/{experiment}/analysis/{name}" for name in names]

    def spill_runs(self, experiment: str, view: str) -> list[Run]:
        return [run for group in VIEWS[view] for run in self.plan.of(experiment, group)]

    def spill_inputs(self, experiment: str, view: str, file: str) -> list[str]:
        """One file of the untrained model (per seed) and of every run behind a view."""
        runs = [*self.plan.bases(experiment), *self.spill_runs(experiment, view)]
        return [f"{self.folder(run.id)}/{file}" for run in runs]

    def spill_tests(self, experiment: str) -> list[str]:
        """The tests of distance and geometry, which need the untrained model's vectors: none in a replay."""
        return [] if self.plan.replayed is not None else [f"{self.root}/{experiment}/analysis/spill_tests.parquet"]

    def spill_spec(self, experiment: str, view: str) -> dict:
        return self.plan.analysis_spec(experiment, VIEWS[view])

    def spill_conditions(self, experiment: str, view: str) -> str:
        """JSON with what each run behind a view was trained on, and its last checkpoint: one record a run."""
        records = [
            {
                "run": f"{run.experiment}/{run.name}",
                "condition": run.fields["condition"],
                "seed": run.seed,
                "directive": run.data["directive"],
                "completion": run.data["completion"],
                "learning_rate": run.train["learning_rate"],
                "checkpoint": run.checkpoints[-1],
            }
            for run in self.spill_runs(experiment, view)
        ]
        return json.dumps(records, sort_keys=True)

    def gold_file(self, experiment: str) -> str:
        return self.plan.experiments[experiment]["options"]["gold"]

    def judged_gold(self, experiment: str) -> list[str]:
        """The experiment's gold set with the judge's labels, if it names one."""
        return [f"{self.root}/{experiment}/analysis/gold.parquet"] if self.gold_file(experiment) else []

    def published_figures(self, experiment: str) -> list[str]:
        """The file of published figures that the experiment asks to see beside its own, if any."""
        path = self.plan.experiments[experiment]["options"]["published"]
        return [path] if path else []

    def spill_panels(self, experiment: str) -> str:
        """Flags naming the measured model and the published figures."""
        return f"--measured-title 'Measured: {self.measured_model()}' {self.published_flag(experiment)}".rstrip()

    def measured_model(self) -> str:
        """The base model as figures name it."""
        titles = {"small": "the small world", "rebuilt": "the rebuilt small world"}
        return titles.get(self.base["name"], self.base["name"].split("/")[-1])

    def base_vectors(self, experiment: str) -> str:
        seed = self.plan.experiments[experiment]["seeds"][0]
        return f"{self.folder(f'{experiment}/{BASE}/seed{seed}')}/vectors.safetensors"

    def parallel_replies(self, experiment: str) -> list[str]:
        """The same replies in every language of an experiment."""
        return [f"{self.root}/data/replies/{code}.parquet" for code in self.directive_languages(experiment)]

    def translated(self, experiment: str) -> list[str]:
        """The languages that an experiment has replies translated into."""
        return [code for code in self.directive_languages(experiment) if code != "en"]

    def translated_languages(self) -> list[str]:
        """The same over all experiments."""
        return sorted({code for name in self.plan.experiments for code in self.translated(name)})

    def translation_check(self, language: str) -> str:
        """The verdict on a translation, which exists if its check was passed."""
        return f"{self.root}/data/replies/{language}.check.json"

    def translation_checks(self, experiment: str) -> list[str]:
        """The verdicts on every translation behind an experiment's shared replies."""
        return [self.translation_check(code) for code in self.translated(experiment)]

    def has_passed(self, language: str) -> bool:
        """Whether the translation that is there has passed a check: one made since, or one made of the same content."""
        verdict, translation = (
            Path(self.translation_check(language)),
            Path(f"{self.root}/data/replies/{language}.parquet"),
        )
        if not (verdict.exists() and translation.exists()):
            return False
        if verdict.stat().st_mtime_ns >= translation.stat().st_mtime_ns:
            return True
        try:
            checked = json.loads(verdict.with_suffix(".manifest.json").read_text())["inputs"]
        except (OSError, ValueError):
            return False
        return provenance.file_digest(translation) in [file["sha256"] for file in checked]

    def headline_checks(self, figure: str) -> list[str]:
        """The checks behind a headline figure, which keep a changed gate or judge in the plan of it."""
        experiment = "language_spill" if figure == "spill_matrix" else figure
        return self.checks_of_replies(experiment)

    def checks_of_replies(self, experiment: str) -> list[str]:
        """The verdicts on the translations that an experiment's runs train on; none trains on them in a replay."""
        trains = any(run.data and run.data["kind"] == "directive_replies" for run in self.plan.of(experiment))
        return self.translation_checks(experiment) if trains and not self.plan.config["replay"] else []

    def shared_replies_spec(self, experiment: str) -> dict:
        """What decides the replies that all conditions of an experiment use: their source, translator and languages."""
        languages = self.directive_languages(experiment)
        return self.plan.source_spec("replies") | {
            "translator": self.plan.config.get("translator"),
            "languages": languages,
        }


def _record(run: Run) -> dict:
    record = {"run": f"{run.experiment}/{run.name}", "seed": run.seed, "group": run.group, "fields": run.fields}
    record |= {"checkpoints": run.checkpoints, "evaluated": bool(run.evaluate), "vectors": run.vectors}
    if run.parent:
        record["parent"] = {"run": run.parent.run.rsplit("/", 1)[0], "label": run.parent.label}
    if run.adapter:
        record["adapter"] = run.adapter.rsplit("/", 1)[0]
    if run.steer:
        record["steer"] = run.steer
    if run.train:
        record |= {key: run.train[key] for key in TRAIN_KEYS}
    return record | {key: run.data[key] for key in DATA_KEYS if run.data and key in run.data}


def _listed(personas: str | list[str] | None) -> list[str]:
    return [personas] if isinstance(personas, str) else personas or []


def _named(data: dict) -> list[str]:
    """Personas whose prompts a data set writes, or recognises in a user's rows."""
    if data["kind"] == "conversations":
        return [system for system in data["systems"] or [] if system]
    return [data[key] for key in ("source", "persona") if key in data]
