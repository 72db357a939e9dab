rule convergence_cosines:
    input:
        vectors=of_analysis(FILES.closing_vectors),
        code=code("convergence_cosines"),
    output:
        table="<convergence>/cosines.parquet",
        manifest="<convergence>/cosines.manifest.json",
    log:
        "<convergence>/cosines.log",
    benchmark:
        "<convergence>/cosines.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=8000,
        runtime=60,
    params:
        spec=of_analysis(as_spec(FILES.closing_spec)),
        runs=of_analysis(FILES.closing_records),
    shell:
        "{resources.python} workflow/scripts/convergence_cosines.py --vectors {input.vectors}"
        " --runs @<(printf %s {params.runs:q}) --spec {params.spec:q} --out {output.table}"
        " --manifest {output.manifest} > {log} 2>&1"


rule convergence_tests:
    input:
        rates="<analysis>/rates.parquet",
        cosines="<analysis>/cosines.parquet",
        code=code("convergence_tests"),
    output:
        points="<convergence>/points.parquet",
        paths="<convergence>/paths.parquet",
        tests="<convergence>/tests.parquet",
        changes="<convergence>/changes.parquet",
        manifest="<convergence>/tests.manifest.json",
    log:
        "<convergence>/tests.log",
    benchmark:
        "<convergence>/tests.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=4000,
        runtime=30,
    params:
        spec=of_analysis(as_spec(FILES.closing_spec)),
        runs=of_analysis(FILES.closing_records),
        scorer=option("scorer"),
        method=option("method"),
    shell:
        "{resources.python} workflow/scripts/convergence_tests.py --rates {input.rates} --cosines {input.cosines}"
        " --runs @<(printf %s {params.runs:q}) --scorer {params.scorer} --method {params.method} --spec {params.spec:q}"
        " --points {output.points} --paths {output.paths} --tests {output.tests} --changes {output.changes}"
        " --manifest {output.manifest} > {log} 2>&1"


rule convergence_figures:
    input:
        points="<analysis>/points.parquet",
        paths="<analysis>/paths.parquet",
        tests="<analysis>/tests.parquet",
        rates="<analysis>/rates.parquet",
        code=code("convergence_figures"),
    output:
        png=report(
            "<convergence>/convergence.png",
            caption="../report/convergence.rst",
            category="Convergence",
            labels={"figure": "Convergence"},
        ),
        pdf="<convergence>/convergence.pdf",
        cross_arm=report(
            "<convergence>/cross_arm.png",
            caption="../report/cross_arm.rst",
            category="Convergence",
            labels={"figure": "Source and assistant along the arms"},
        ),
        source_retention=report(
            "<convergence>/source_retention.png",
            caption="../report/source_retention.rst",
            category="Convergence",
            labels={"figure": "Source retention"},
        ),
        cosine_evolution=report(
            "<convergence>/cosine_evolution.png",
            caption="../report/cosine_evolution.rst",
            category="Convergence",
            labels={"figure": "Cosine along the arms"},
        ),
        trajectories=report(
            "<convergence>/trajectories.png",
            caption="../report/trajectories.rst",
            category="Convergence",
            labels={"figure": "Trajectories"},
        ),
        leakage_cosine=report(
            "<convergence>/leakage_cosine.png",
            caption="../report/leakage_cosine.rst",
            category="Convergence",
            labels={"figure": "Leakage against cosine"},
        ),
        predictors=report(
            "<convergence>/predictors.png",
            caption="../report/predictors.rst",
            category="Convergence",
            labels={"figure": "Cosine and breadth as predictors"},
        ),
        heatmap=report(
            "<convergence>/heatmap.png",
            caption="../report/heatmap.rst",
            category="Convergence",
            labels={"figure": "All personas at the end"},
        ),
        adapter_quality=report(
            "<convergence>/adapter_quality.png",
            caption="../report/adapter_quality.rst",
            category="Convergence",
            labels={"figure": "Marker adapters before any second training"},
        ),
        steering=report(
            "<convergence>/steering.png",
            caption="../report/steering.rst",
            category="Convergence",
            labels={"figure": "Steering"},
        ),
        heatmap_table="<convergence>/heatmap.parquet",
        manifest="<convergence>/convergence.manifest.json",
    log:
        "<convergence>/convergence.log",
    benchmark:
        "<convergence>/convergence.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=4000,
        runtime=30,
    params:
        spec=of_analysis(as_spec(FILES.closing_spec)),
        runs=of_analysis(FILES.closing_records),
        scorer=option("scorer"),
        method=option("method"),
        layer=lambda wildcards: option("layers")(wildcards)[0],
    shell:
        "{resources.python} workflow/scripts/convergence_figures.py --points {input.points} --paths {input.paths}"
        " --tests {input.tests} --rates {input.rates} --runs @<(printf %s {params.runs:q}) --scorer {params.scorer}"
        " --method {params.method} --layer {params.layer} --spec {params.spec:q} --out {output.png} --pdf {output.pdf}"
        " --figures {output.cross_arm} {output.source_retention} {output.cosine_evolution} {output.trajectories}"
        " {output.leakage_cosine} {output.predictors} {output.heatmap} {output.adapter_quality} {output.steering}"
        " --heatmap {output.heatmap_table} --manifest {output.manifest} > {log} 2>&1"


rule convergence_summary:
    input:
        points="<analysis>/points.parquet",
        paths="<analysis>/paths.parquet",
        tests="<analysis>/tests.parquet",
        rates="<analysis>/rates.parquet",
        published=option("published"),
        sweep=of_analysis(FILES.sweep_cells),
        code=code("convergence_summary"),
    output:
        text="<convergence>/summary.md",
        numbers="<convergence>/summary.json",
        manifest="<convergence>/summary.manifest.json",
    log:
        "<convergence>/summary.log",
    benchmark:
        "<convergence>/summary.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=4000,
        runtime=30,
    params:
        spec=of_analysis(as_spec(FILES.closing_spec)),
        runs=of_analysis(FILES.closing_records),
        scorer=option("scorer"),
        method=option("method"),
        layers=option("layers"),
        sweep=lambda wildcards, input: f"--sweep {input.sweep}" if input.sweep else "",
        title=title,
    shell:
        "{resources.python} workflow/scripts/convergence_summary.py --points {input.points} --paths {input.paths}"
        " --tests {input.tests} --rates {input.rates} --published {input.published} {params.sweep}"
        " --runs @<(printf %s {params.runs:q}) --scorer {params.scorer} --method {params.method} --layers {params.layers}"
        " --title {params.title:q} --spec {params.spec:q} --out {output.text}"
        " --json {output.numbers} --manifest {output.manifest} > {log} 2>&1"
