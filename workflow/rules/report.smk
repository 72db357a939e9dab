rule completions_browser:
    input:
        completions=of_analysis(FILES.read_files, "completions.parquet"),
        labels=of_analysis(FILES.read_files, "labels.parquet"),
        cells=of_analysis(FILES.cell_table),
        pages=BROWSER_PAGES,
        code=code("completions_browser"),
    output:
        page="<analysis>/completions.html",
        manifest="<analysis>/completions_browser.manifest.json",
    log:
        "<analysis>/completions_browser.log",
    benchmark:
        "<analysis>/completions_browser.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=8000,
        runtime=30,
    params:
        spec=of_analysis(as_spec(FILES.closing_spec)),
        title=title,
        question=question,
        labels=lambda wildcards, input: f"--labels {input.labels}" if input.labels else "",
        cells=lambda wildcards, input: f"--cells {input.cells}" if input.cells else "",
    shell:
        "{resources.python} workflow/scripts/completions_browser.py --completions {input.completions} {params.labels}"
        " {params.cells} --title {params.title:q} --question {params.question:q} --spec {params.spec:q}"
        " --out {output.page} --manifest {output.manifest} > {log} 2>&1"


rule report_page:
    input:
        of(FILES.report_files),
        claims="<root>/claims.parquet",
        pages=REPORT_PAGES,
        code=code("report_page"),
    output:
        page="<root>/report.html",
        manifest="<root>/report.manifest.json",
    log:
        "<root>/report.log",
    benchmark:
        "<root>/report.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=8000,
        runtime=30,
    params:
        spec=of(as_spec(FILES.report_spec)),
        experiments=of(FILES.report_sections),
        root=FILES.root,
    shell:
        "{resources.python} workflow/scripts/report_page.py --experiments {params.experiments:q} --claims {input.claims}"
        " --root {params.root} --spec {params.spec:q} --out {output.page} --manifest {output.manifest} > {log} 2>&1"
