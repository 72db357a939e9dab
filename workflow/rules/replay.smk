# A replay takes completions from files where otherwise models answer (generate.smk); everything after is the same.
ruleorder: replayed_artefact > vectors > train > dataset_card


if PLAN.stored_labels:

    ruleorder: replayed_labels > labels

else:

    ruleorder: labels > replayed_labels


rule replayed:
    input:
        file=of_run(FILES.replayed_file),
        languages="resources/languages.yaml",
        code=code("replay"),
    output:
        table="<run>/completions.parquet",
        measures="<run>/measures.parquet",
        manifest="<run>/completions.manifest.json",
    log:
        "<run>/completions.log",
    benchmark:
        "<run>/completions.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=4000,
        runtime=10,
    params:
        spec=of_run(as_spec(PLAN.completions_spec)),
        suite=of_run(FILES.replayed_suite),
        texts="" if PLAN.stored_labels else "--texts",
    shell:
        "{resources.python} workflow/scripts/replay.py {params.texts} --file {input.file} --run {wildcards.experiment}/{wildcards.name}"
        " --seed {wildcards.seed} --suite {params.suite} --spec {params.spec:q} --out {output.table}"
        " --measures {output.measures} --manifest {output.manifest} > {log} 2>&1"


rule replayed_labels:
    input:
        file=of_run(FILES.replayed_file),
        languages="resources/languages.yaml",
        code=code("replay"),
    output:
        table="<run>/labels.parquet",
        manifest="<run>/labels.manifest.json",
    log:
        "<run>/labels.log",
    benchmark:
        "<run>/labels.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=4000,
        runtime=10,
    params:
        spec=of_run(as_spec(PLAN.labels_spec)),
        suite=of_run(FILES.replayed_suite),
    shell:
        "{resources.python} workflow/scripts/replay.py --labels --file {input.file}"
        " --run {wildcards.experiment}/{wildcards.name} --seed {wildcards.seed} --suite {params.suite}"
        " --spec {params.spec:q} --out {output.table} --manifest {output.manifest} > {log} 2>&1"


rule replayed_artefact:
    input:
        of_run(FILES.replayed_beside, "artefact"),
    output:
        "<run>/{artefact}",
    log:
        "<run>/{artefact}.log",
    wildcard_constraints:
        artefact=r"vectors\.safetensors|train_log\.jsonl|dataset_card\.json",
    conda:
        "../envs/analysis.yaml"
    shell:
        "cp {input} {output} 2> {log}"


rule compare_conclusions:
    input:
        unpack(of_analysis(FILES.compared_files)),
        labels=of_analysis(FILES.read_files, [], "labels.parquet"),
        code=code("compare_conclusions"),
    output:
        text="<analysis>/comparison.md",
        json="<analysis>/comparison.json",
        outcomes="<analysis>/outcomes.parquet",
        manifest="<analysis>/comparison.manifest.json",
    log:
        "<analysis>/comparison.log",
    benchmark:
        "<analysis>/comparison.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=4000,
        runtime=10,
    params:
        title=title,
        spec=of_analysis(as_spec(FILES.closing_spec)),
        before=lambda wildcards, input: f"--before {input.before}" if "before" in input.keys() else "",
        cells=lambda wildcards, input: f"--cells {input.cells}" if "cells" in input.keys() else "",
    shell:
        "{resources.python} workflow/scripts/compare_conclusions.py --title {params.title:q} {params.before}"
        " --after {input.after} {params.cells} --labels {input.labels} --spec {params.spec:q}"
        " --out {output.text} --json {output.json} --outcomes {output.outcomes} --manifest {output.manifest} > {log} 2>&1"
