"""A phased search: which runs and files each phase reads, and which phases its decision records have reached.

A phase ends in a decision record; the next one is planned only after a record without a pass. Selected runs without a
phase are controls: they are wanted in any case and end nothing. Plain Python over the plan's files: rules ask it for
inputs, tests ask it without Snakemake.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from spillover.config import ConfigError, closest
from spillover.files import Files, _record
from spillover.plan import BASE, GENERATING, Run, digest

CONTROLS = "controls"
RECORDED = ("source", "mix", "systems")


class Search:
    """The phased searches of a plan. Experiments are named by their id, phases as in their YAML."""

    def __init__(self, files: Files):
        self.files = files
        self.plan = files.plan

    def settings(self, experiment: str) -> dict:
        return self.plan.experiments[experiment]

    def all_phases(self, experiment: str) -> bool:
        return self.settings(experiment)["options"]["run_all_phases"]

    def phases(self, experiment: str) -> list[str]:
        """The phases that have selected runs, in the order of the search."""
        present = {run.phase for run in self.plan.of(experiment)}
        return [phase for phase in self.settings(experiment)["phases"] if phase in present]

    def parts(self, experiment: str, reached: Sequence[str]) -> list[str]:
        """The phases reached, and the controls where runs without a phase are selected."""
        return [*reached, *([CONTROLS] if self.own_runs(experiment, CONTROLS) else [])]

    def reached(self, experiment: str, passed: Mapping[str, bool]) -> tuple[list[str], str | None]:
        """(phases decided or no longer needed to be, the phase whose record is wanted next or None).

        `passed`: {phase: whether its record has a pass} of the records there are.
        """
        found = []
        for phase in self.phases(experiment):
            if phase not in passed:
                return found, phase
            found.append(phase)
            if passed[phase] and not self.all_phases(experiment):
                break
        return found, None

    def own_runs(self, experiment: str, phase: str) -> list[Run]:
        wanted = None if phase == CONTROLS else phase
        return [run for run in self.plan.of(experiment) if run.phase == wanted]

    def runs(self, experiment: str, phase: str) -> list[Run]:
        """The runs a phase's decision reads: the untrained model, the baselines of its narrow sets, its own."""
        own = self.own_runs(experiment, phase)
        options = self.settings(experiment)["options"]
        baselines = options["baselines"]
        plain = next(name for name, baseline in baselines.items() if baseline["task"] == options["general"])
        narrow = [plain, *dict.fromkeys(run.data["source"] for run in own)]
        wanted = [baselines[name]["run"] for name in dict.fromkeys(narrow) if name in baselines]
        seeds = self.settings(experiment)["seeds"]
        runs = [self.plan.runs[f"{experiment}/{name}/seed{seed}"] for name in [BASE, *wanted] for seed in seeds]
        return [*runs, *(run for run in own if run not in runs)]

    def decision(self, experiment: str, phase: str) -> str:
        return f"{self.files.root}/{experiment}/analysis/phases/{phase}.json"

    def inputs(self, experiment: str, phase: str) -> dict[str, list[str]]:
        """The files a phase's decision reads: vectors, measures and, where its own runs' replies are scored, labels."""
        runs = self.runs(experiment, phase)
        labelled = [run for run in runs if self._generates(run)] if self._scored(experiment, phase) else []
        folder = self.files.folder
        return {
            "vectors": [f"{folder(run.id)}/vectors.safetensors" for run in runs if run.vectors],
            "measures": [f"{folder(run.id)}/measures.parquet" for run in runs if run.evaluate],
            "labels": [f"{folder(run.id)}/labels.parquet" for run in labelled],
        }

    def records(self, experiment: str, phase: str) -> str:
        """JSON with a record a run, as `Files.closing_records`, and what tells recipes apart."""
        scored = self._scored(experiment, phase)
        runs = self.runs(experiment, phase)
        return json.dumps([self._record(run, scored and self._generates(run)) for run in runs], sort_keys=True)

    def spec(self, experiment: str, phase: str) -> dict:
        """What decides a phase's record. Whether later phases run in any case does not."""
        spec = self.plan.closing_spec(experiment, self.runs(experiment, phase))
        options = {key: value for key, value in spec["options"].items() if key not in ("run_all_phases", "sweep")}
        return spec | {"options": options, "phases": self.phases(experiment)}

    def closing_spec(self, experiment: str) -> dict:
        """What decides the closing analysis, whichever phases are reached."""
        spec = self.plan.closing_spec(experiment, [])
        return spec | {"model": self.plan.config["model"]["name"], "judge": self.plan.config["judge"]}

    def compared_runs(self, experiment: str, reached: Sequence[str]) -> list[Run]:
        """What alarms look at: the runs that the records of the phases reached read; all of them without phases."""
        if not self.settings(experiment)["phases"]:
            return self.files.closing_runs(experiment)
        found = [run for part in self.parts(experiment, reached) for run in self.runs(experiment, part)]
        return list({run.id: run for run in found}.values())

    def compared_files(self, experiment: str, reached: Sequence[str], file: str) -> list[str]:
        """One file of each of them that has it; measures of a search alone, where every run has losses."""
        if not self.settings(experiment)["phases"]:
            return [] if file == "measures.parquet" else self.files.closing_files(experiment, file)
        tables = self._tables(experiment, reached)
        kind = file.removesuffix(".parquet")
        return [f"{self.files.folder(run_id)}/{file}" for run_id, kinds in tables.items() if kind in kinds]

    def compared_records(self, experiment: str, reached: Sequence[str]) -> str:
        """JSON with a record a run; small ones in a search, which has many runs."""
        if not self.settings(experiment)["phases"]:
            return self.files.evaluated_records(experiment)
        tables = self._tables(experiment, reached)
        records = []
        for run in self.compared_runs(experiment, reached):
            record = {"run": f"{run.experiment}/{run.name}", "seed": run.seed, "tables": tables[run.id]}
            if run.train:
                *early, last = run.checkpoints
                record |= {"early": early, "trained": {last: self._training(run)}}
            records.append(record)
        return json.dumps(records, sort_keys=True)

    def compared_spec(self, experiment: str, reached: Sequence[str]) -> dict:
        return self.plan.closing_spec(experiment, self.compared_runs(experiment, reached))

    def cards(self, experiment: str, reached: Sequence[str]) -> list[str]:
        """The data cards of every mixture of the phases reached: what its shares came to."""
        own = [run for phase in self.parts(experiment, reached) for run in self.own_runs(experiment, phase)]
        return [f"{self.files.folder(run.id)}/dataset_card.json" for run in own if run.data.get("mix")]

    def norms(self, experiment: str, reached: Sequence[str]) -> list[str]:
        """Weight changes of the runs whose norms are compared: the groups that the options name."""
        groups = self.settings(experiment)["options"]["norms"]
        own = [run for phase in self.parts(experiment, reached) for run in self.own_runs(experiment, phase)]
        return [f"{self.files.folder(run.id)}/weight_change.json" for run in own if run.group in groups]

    def sweep_spec(self, run_id: str) -> dict:
        """What decides the vectors of a passing recipe over all layers."""
        spec = self.plan.vectors_spec(run_id)
        sweep = self.plan.experiments[run_id.split("/")[0]]["options"]["sweep"]
        return spec | {"vectors": spec["vectors"] | {key: sweep[key] for key in ("layers", "methods")}}

    def sweeps(self, experiment: str, passing: Sequence[str]) -> list[str]:
        """Vectors over all layers of the untrained model and of the passing recipes (`run@checkpoint`), best first."""
        options = self.settings(experiment)["options"]["sweep"]
        names = list(dict.fromkeys(name.split("@")[0] for name in passing))[: options["most"] if options else 0]
        seed = self.settings(experiment)["seeds"][0]
        runs = [BASE, *names] if names else []
        return [f"{self.files.folder(f'{experiment}/{name}/seed{seed}')}/vectors-sweep.safetensors" for name in runs]

    def check(self, experiment: str, path: str) -> None:
        """Raise ConfigError for a search that cannot be decided: unknown phases, baselines or groups, no vectors."""
        settings, options = self.settings(experiment), self.settings(experiment)["options"]
        phases, groups = settings["phases"], list(settings["runs"])
        names = {run.name: run for run in self.plan.runs.values() if run.experiment == experiment}
        for group, template in settings["runs"].items():
            if template.get("phase") is not None and template["phase"] not in phases:
                raise ConfigError(
                    f"{path}: runs.{group}.phase: no phase {template['phase']!r}{closest(template['phase'], phases)}"
                )
        for key in ("controls", "norms"):
            for group in options[key]:
                if group not in groups:
                    raise ConfigError(f"{path}: options.{key}: no group {group!r}{closest(group, groups)}")
        if options["general"] not in [baseline["task"] for baseline in options["baselines"].values()]:
            raise ConfigError(f"{path}: options.general: no baseline has {options['general']!r} as its task")
        for narrow, baseline in options["baselines"].items():
            at = f"{path}: options.baselines.{narrow}"
            if baseline["run"] not in names:
                raise ConfigError(f"{at}.run: no run {baseline['run']!r}{closest(baseline['run'], list(names))}")
            saved = names[baseline["run"]].checkpoints
            if baseline["checkpoint"] not in saved:
                raise ConfigError(
                    f"{at}.checkpoint: {baseline['run']} is not evaluated at {baseline['checkpoint']!r}"
                    f"{closest(baseline['checkpoint'], saved)}"
                )
        if options["rule"]["layer"] not in settings["vectors"]["layers"]:
            raise ConfigError(f"{path}: options.rule.layer: {options['rule']['layer']} is not among vectors.layers")
        if options["rule"]["method"] not in settings["vectors"]["methods"]:
            raise ConfigError(f"{path}: options.rule.method: {options['rule']['method']} is not among vectors.methods")
        for run in self.plan.of(experiment):
            if not run.vectors:
                raise ConfigError(f"{path}: runs.{run.group}.vectors: the search needs the vectors of every run")

    def _scored(self, experiment: str, phase: str) -> bool:
        return any(self._generates(run) for run in self.own_runs(experiment, phase))

    def _generates(self, run: Run) -> bool:
        suites = self.settings(run.experiment)["suites"]
        return any(suites[name]["kind"] in GENERATING for name in run.evaluate)

    def _tables(self, experiment: str, reached: Sequence[str]) -> dict[str, list[str]]:
        """{run id: the tables that alarms read of it}; no labels that no record has asked for."""
        labelled = {
            path for part in self.parts(experiment, reached) for path in self.inputs(experiment, part)["labels"]
        }
        found = {}
        for run in self.compared_runs(experiment, reached):
            tables = ["measures"] if run.evaluate else []
            tables += ["completions"] if self._generates(run) else []
            tables += ["labels"] if f"{self.files.folder(run.id)}/labels.parquet" in labelled else []
            found[run.id] = tables
        return found

    def _training(self, run: Run) -> str:
        """A digest of what decides a run's final weights: a truncated schedule may be the whole one by another name."""
        spec = self.plan.train_spec(run.id)
        train = {key: value for key, value in spec.get("train", {}).items() if key != "checkpoints"}
        return digest(spec | {"train": train})

    def _record(self, run: Run, labels: bool) -> dict:
        record = _record(run) | {"phase": run.phase, "folder": self.files.folder(run.id), "labels": labels}
        if run.train:
            record |= {"batch_size": run.train["batch_size"], "regulariser": run.train["regulariser"]}
        return record | {key: run.data[key] for key in RECORDED if run.data and key in run.data}
