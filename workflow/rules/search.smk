"""A phased search in Snakemake's terms: inputs that grow from one decision record to the next."""

SEARCH = phases.Search(FILES)
for name, settings in PLAN.experiments.items():
    if settings["phases"]:
        try:
            SEARCH.check(name, f"config/experiments/{name}.yaml")
        except ConfigError as error:
            raise WorkflowError(str(error)) from None

PHASES = sorted({phase for settings in PLAN.experiments.values() for phase in settings["phases"]})


wildcard_constraints:
    phase="|".join([*PHASES, phases.CONTROLS]),


def of_analysis_phase(method):
    """Input or params function: what `method` says about the experiment and the phase."""

    def get(wildcards):
        return method(wildcards.experiment, wildcards.phase)

    return get


def passed(experiment, phase):
    """The recipes that a phase's record passes; waits for the record where there is none yet."""
    record = checkpoints.phase_decision.get(experiment=experiment, phase=phase).output.decision
    with record.open() as file:
        return json.load(file)["passing"]


def reached(experiment):
    """The phases that are run: all of them if so asked for, else up to the first whose record has a pass.

    None where an experiment has no phases and is known whole.
    """
    done = {}
    while SEARCH.phases(experiment) and not SEARCH.all_phases(experiment):
        found, wanted = SEARCH.reached(experiment, done)
        if wanted is None:
            return found
        done[wanted] = bool(passed(experiment, wanted))
    return SEARCH.phases(experiment)


def phases_reached(wildcards):
    experiment = wildcards.experiment
    return [SEARCH.decision(experiment, phase) for phase in SEARCH.parts(experiment, reached(experiment))]


def beside_decisions(file):
    def get(wildcards):
        return [path.removesuffix("json") + file for path in phases_reached(wildcards)]

    return get


def of_phases_reached(method, *arguments):
    """Input or params function: what `method` says about the experiment, its phases reached and these arguments."""

    def get(wildcards):
        return method(wildcards.experiment, reached(wildcards.experiment), *arguments)

    return get


def of_all_reached(method):
    """Input or params function for what covers all experiments: `method` takes the phases that each has reached."""

    def get(wildcards):
        return method({experiment: reached(experiment) for experiment in PLAN.experiments})

    return get


def points_reached(wildcards):
    """The points of the phases reached; none where an experiment has no phases."""
    phased = PLAN.experiments[wildcards.experiment]["phases"]
    return beside_decisions("points.parquet")(wildcards) if phased else []


def search_flags(wildcards, input):
    """What alarms are told of a phased search alone."""
    return f"--measures {input.measures} --points {input.points} --scorers-may-agree" if input.points else ""


def passing_sweeps(wildcards):
    """Vectors over all layers of what passed; none where no sweep is asked for, and then no record is waited for."""
    experiment = wildcards.experiment
    if not SEARCH.settings(experiment)["options"]["sweep"]:
        return []
    return SEARCH.sweeps(experiment, [name for phase in reached(experiment) for name in passed(experiment, phase)])
