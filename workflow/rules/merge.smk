rule merge:
    input:
        unpack(of_run(FILES.merge_files, "label")),
        code=code("merge"),
    output:
        model=temp(directory("<run>/merged/{label}")),
        report="<run>/merge_report-{label}.json",
        manifest="<run>/merge-{label}.manifest.json",
    log:
        "<run>/merge-{label}.log",
    benchmark:
        "<run>/merge-{label}.benchmark.jsonl"
    conda:
        "../envs/train.yaml"
    resources:
        python="python",
        mem_mb=48000,
        disk_mb=20000,
        runtime=60,
    params:
        spec=of_run(as_spec(FILES.merge_spec), "label"),
        models=of_run(FILES.merge_flags, "label"),
    shell:
        "{resources.python} workflow/scripts/merge.py {params.models} --spec {params.spec:q}"
        " --out {output.model} --report {output.report} --manifest {output.manifest} > {log} 2>&1"
