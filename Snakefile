from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/base.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/merge.smk"
include: "workflow/rules/replay.smk" if CONFIG["replay"] else "workflow/rules/generate.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/vectors.smk"
include: "workflow/rules/analysis.smk"
include: "workflow/rules/marker_rates.smk"
include: "workflow/rules/coupling.smk"
include: "workflow/rules/convergence.smk"
include: "workflow/rules/marker_sweep.smk"
include: "workflow/rules/search.smk"
include: "workflow/rules/recipes.smk"
include: "workflow/rules/claims.smk"
include: "workflow/rules/report.smk"


localrules:
    all,
    headline_figure,
    inspect_logs,


onstart:
    stop_before_the_first_job()


rule all:
    default_target: True
    input:
        FILES.everything(),
