rule completions_browser:
    input:
        completions=of_phases_reached(FILES.read_files, "completions.parquet"),
        labels=of_phases_reached(FILES.read_files, "labels.parquet"),
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
        spec=of_phases_reached(as_spec(SEARCH.compared_spec)),
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
        of_all_reached(FILES.report_files),
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
        experiments=of_all_reached(FILES.report_sections),
        root=subpath(output.page, parent=True),
    shell:
        "{resources.python} workflow/scripts/report_page.py --experiments @<(printf %s {params.experiments:q})"
        " --claims {input.claims} --root {params.root} --spec @<(printf %s {params.spec:q})"
        " --out {output.page} --manifest {output.manifest} > {log} 2>&1"


# `inspect view` lists only files whose names begin with a time; when the completions were made stands in the log.
rule inspect_log:
    input:
        completions="<run>/completions.parquet",
        made="<run>/completions.manifest.json",
        labels=of_run(FILES.own_labels),
        code=code("export_inspect"),
    output:
        log="<root>/inspect/{experiment}/2000-01-01T00-00-00_{name}_seed{seed}_{checkpoint}.json",
        manifest="<root>/inspect/{experiment}/{name}_seed{seed}_{checkpoint}.manifest.json",
    log:
        "<root>/inspect/{experiment}/{name}_seed{seed}_{checkpoint}.log",
    benchmark:
        "<root>/inspect/{experiment}/{name}_seed{seed}_{checkpoint}.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=4000,
        runtime=10,
    params:
        spec=of_run(as_spec(PLAN.labels_spec)),
        labels=lambda wildcards, input: f"--labels {input.labels}" if input.labels else "",
    shell:
        "{resources.python} workflow/scripts/export_inspect.py --completions {input.completions} {params.labels}"
        " --made {input.made} --checkpoint {wildcards.checkpoint} --spec {params.spec:q} --out {output.log}"
        " --manifest {output.manifest} > {log} 2>&1"


rule inspect_logs:
    input:
        of_all_reached(FILES.inspect_logs),
