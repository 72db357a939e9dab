rule reply_checks:
    input:
        completions=of_analysis(FILES.closing_files, "completions.parquet"),
        code=code("reply_checks"),
    output:
        table="<marker_sweep>/replies.parquet",
        manifest="<marker_sweep>/replies.manifest.json",
    log:
        "<marker_sweep>/replies.log",
    benchmark:
        "<marker_sweep>/replies.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=4000,
        runtime=30,
    params:
        spec=of_analysis(as_spec(FILES.closing_spec)),
        suite=option("suite"),
        marker=lambda wildcards: option("marker")(wildcards)["text"],
    shell:
        "{resources.python} workflow/scripts/reply_checks.py --completions {input.completions} --suite {params.suite}"
        " --marker {params.marker:q} --spec {params.spec:q} --out {output.table} --manifest {output.manifest}"
        " > {log} 2>&1"


rule sweep_cells:
    input:
        rates="<analysis>/rates.parquet",
        replies="<analysis>/replies.parquet",
        measures=of_analysis(FILES.closing_files, "measures.parquet"),
        code=code("sweep_cells"),
    output:
        cells="<marker_sweep>/cells.parquet",
        boundary="<marker_sweep>/boundary.parquet",
        manifest="<marker_sweep>/cells.manifest.json",
    log:
        "<marker_sweep>/cells.log",
    benchmark:
        "<marker_sweep>/cells.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=4000,
        runtime=30,
    params:
        spec=of_analysis(as_spec(FILES.closing_spec)),
        runs=of_analysis(FILES.sweep_records),
    shell:
        "{resources.python} workflow/scripts/sweep_cells.py --rates {input.rates} --replies {input.replies}"
        " --measures {input.measures} --runs {params.runs:q} --spec {params.spec:q} --out {output.cells}"
        " --boundary {output.boundary} --manifest {output.manifest} > {log} 2>&1"


rule sweep_figures:
    input:
        cells="<analysis>/cells.parquet",
        boundary="<analysis>/boundary.parquet",
        published=of_analysis(FILES.published_figures),
        code=code("sweep_figures"),
    output:
        png=report(
            "<marker_sweep>/marker_sweep.png",
            caption="../report/marker_sweep.rst",
            category="Marker sweep",
            labels={"figure": "Heatmaps"},
        ),
        pdf="<marker_sweep>/marker_sweep.pdf",
        table="<marker_sweep>/marker_sweep.parquet",
        lines=report(
            "<marker_sweep>/marker_boundary.png",
            caption="../report/marker_boundary.rst",
            category="Marker sweep",
            labels={"figure": "Boundaries"},
        ),
        manifest="<marker_sweep>/marker_sweep.manifest.json",
    log:
        "<marker_sweep>/marker_sweep.log",
    benchmark:
        "<marker_sweep>/marker_sweep.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=2000,
        runtime=10,
    params:
        spec=of_analysis(as_spec(FILES.closing_spec)),
        panels=of_analysis(FILES.spill_panels),
    shell:
        "{resources.python} workflow/scripts/sweep_figures.py --cells {input.cells} --boundary {input.boundary}"
        " {params.panels} --spec {params.spec:q} --out {output.png} --pdf {output.pdf} --table {output.table}"
        " --lines {output.lines} --manifest {output.manifest} > {log} 2>&1"


rule sweep_summary:
    input:
        cells="<analysis>/cells.parquet",
        boundary="<analysis>/boundary.parquet",
        published=of_analysis(FILES.published_figures),
        code=code("sweep_summary"),
    output:
        text="<marker_sweep>/summary.md",
        numbers="<marker_sweep>/summary.json",
        manifest="<marker_sweep>/summary.manifest.json",
    log:
        "<marker_sweep>/summary.log",
    benchmark:
        "<marker_sweep>/summary.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=2000,
        runtime=10,
    params:
        spec=of_analysis(as_spec(FILES.closing_spec)),
        design=of_analysis(FILES.sweep_design),
        published=of_analysis(FILES.published_flag),
        title=title,
    shell:
        "{resources.python} workflow/scripts/sweep_summary.py --cells {input.cells} --boundary {input.boundary}"
        " {params.published} --design {params.design:q} --title {params.title:q} --spec {params.spec:q}"
        " --out {output.text} --json {output.numbers} --manifest {output.manifest} > {log} 2>&1"
