rule coupling_table:
    input:
        rates="<analysis>/rates.parquet",
        labels=of_analysis(FILES.closing_files, "labels.parquet"),
        measures=of_analysis(FILES.closing_files, "measures.parquet"),
        train_logs=of_analysis(FILES.closing_training, "train_log.jsonl"),
        code=code("coupling_table"),
    output:
        table="<coupling>/conditions.parquet",
        seeds="<coupling>/conditions_by_seed.parquet",
        manifest="<coupling>/conditions.manifest.json",
    log:
        "<coupling>/conditions.log",
    benchmark:
        "<coupling>/conditions.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=4000,
        runtime=30,
    params:
        spec=of_analysis(as_spec(FILES.closing_spec)),
        runs=of_analysis(FILES.closing_records),
        source=of_analysis(FILES.taught_persona),
    shell:
        "{resources.python} workflow/scripts/coupling_table.py --rates {input.rates} --labels {input.labels}"
        " --measures {input.measures} --train-logs {input.train_logs}"
        " --runs @<(printf %s {params.runs:q}) --source {params.source} --spec {params.spec:q}"
        " --seeds {output.seeds} --out {output.table} --manifest {output.manifest} > {log} 2>&1"


rule adapter_overlap:
    input:
        adapters=of_analysis(FILES.adapter_pair_files),
        code=code("adapter_overlap"),
    output:
        table="<coupling>/adapter_overlap.parquet",
        manifest="<coupling>/adapter_overlap.manifest.json",
    log:
        "<coupling>/adapter_overlap.log",
    benchmark:
        "<coupling>/adapter_overlap.benchmark.jsonl"
    conda:
        "../envs/train.yaml"
    resources:
        python="python",
        mem_mb=8000,
        runtime=120,
    params:
        spec=of_analysis(as_spec(FILES.closing_spec)),
        pairs=of_analysis(FILES.adapter_pairs),
    shell:
        "{resources.python} workflow/scripts/adapter_overlap.py --pairs {params.pairs:q} --spec {params.spec:q}"
        " --out {output.table} --manifest {output.manifest} > {log} 2>&1"


rule persona_shift:
    input:
        vectors=of_analysis(FILES.closing_vectors),
        code=code("persona_shift"),
    output:
        table="<coupling>/persona_shift.parquet",
        manifest="<coupling>/persona_shift.manifest.json",
    log:
        "<coupling>/persona_shift.log",
    benchmark:
        "<coupling>/persona_shift.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=8000,
        runtime=60,
    params:
        spec=of_analysis(as_spec(FILES.closing_spec)),
        runs=of_analysis(FILES.closing_records),
        source=of_analysis(FILES.taught_persona),
    shell:
        "{resources.python} workflow/scripts/persona_shift.py --vectors {input.vectors}"
        " --runs @<(printf %s {params.runs:q}) --source {params.source} --spec {params.spec:q}"
        " --out {output.table} --manifest {output.manifest} > {log} 2>&1"


rule coupling_figures:
    input:
        conditions="<coupling>/conditions.parquet",
        overlap="<coupling>/adapter_overlap.parquet",
        shift="<coupling>/persona_shift.parquet",
        published=of(FILES.published_figures, "experiment"),
        code=code("coupling_figures"),
    output:
        headline=report(
            "<coupling>/coupling.png",
            caption="../report/coupling.rst",
            category="Coupling",
            labels={"figure": "Coupling after another fine-tune"},
        ),
        overlap=report(
            "<coupling>/adapter_overlap.png",
            caption="../report/adapter_overlap.rst",
            category="Coupling",
            labels={"figure": "Subspaces that two adapters share"},
        ),
        shift=report(
            "<coupling>/persona_shift.png",
            caption="../report/persona_shift.rst",
            category="Coupling",
            labels={"figure": "The source persona's vector"},
        ),
        pdfs=[f"<coupling>/{name}.pdf" for name in ("coupling", "adapter_overlap", "persona_shift")],
        manifest="<coupling>/coupling_figures.manifest.json",
    log:
        "<coupling>/coupling_figures.log",
    benchmark:
        "<coupling>/coupling_figures.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=2000,
        runtime=10,
    params:
        spec=of_analysis(as_spec(FILES.closing_spec)),
        published=of_analysis(FILES.published_flag),
    shell:
        "{resources.python} workflow/scripts/coupling_figures.py --conditions {input.conditions} --overlap {input.overlap}"
        " --shift {input.shift} {params.published} --spec {params.spec:q} --headline {output.headline}"
        " --overlap-figure {output.overlap} --vectors-figure {output.shift} --manifest {output.manifest} > {log} 2>&1"


rule coupling_summary:
    input:
        conditions="<coupling>/conditions.parquet",
        overlap="<coupling>/adapter_overlap.parquet",
        shift="<coupling>/persona_shift.parquet",
        published=of(FILES.published_figures, "experiment"),
        sweep=of_analysis(FILES.sweep_cells),
        code=code("coupling_summary"),
    output:
        text="<coupling>/summary.md",
        numbers="<coupling>/summary.json",
        manifest="<coupling>/summary.manifest.json",
    log:
        "<coupling>/summary.log",
    benchmark:
        "<coupling>/summary.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=2000,
        runtime=10,
    params:
        spec=of_analysis(as_spec(FILES.closing_spec)),
        title=title,
        model=CONFIG["model"]["name"],
        cell=of_analysis(FILES.prebaked_cell),
        sweep=lambda wildcards, input: f"--sweep {input.sweep}" if input.sweep else "",
        published=of_analysis(FILES.published_flag),
    shell:
        "{resources.python} workflow/scripts/coupling_summary.py --conditions {input.conditions} --overlap {input.overlap}"
        " --shift {input.shift} {params.published} {params.sweep} --cell {params.cell:q} --title {params.title:q} --model {params.model:q} --spec {params.spec:q}"
        " --out {output.text} --json {output.numbers} --manifest {output.manifest} > {log} 2>&1"
