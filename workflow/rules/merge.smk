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
        spec=of_run(as_spec(FILES.reference_spec), "label"),
        models=of_run(FILES.merge_flags, "label"),
    shell:
        "{resources.python} workflow/scripts/merge.py {params.models} --spec {params.spec:q}"
        " --out {output.model} --report {output.report} --manifest {output.manifest} > {log} 2>&1"


rule stack:
    input:
        unpack(of_run(FILES.stack_files, "label")),
        code=code("stack"),
    output:
        weights="<run>/stacked/{label}/adapter_model.safetensors",
        config="<run>/stacked/{label}/adapter_config.json",
        manifest="<run>/stacked/{label}/stack.manifest.json",
    log:
        "<run>/stacked/{label}/stack.log",
    benchmark:
        "<run>/stacked/{label}/stack.benchmark.jsonl"
    conda:
        "../envs/train.yaml"
    resources:
        python="python",
        mem_mb=8000,
        runtime=15,
    params:
        spec=of_run(as_spec(FILES.reference_spec), "label"),
        adapters=of_run(FILES.stack_flags, "label"),
        out=subpath(output.weights, parent=True),
    shell:
        "{resources.python} workflow/scripts/stack.py {params.adapters} --spec {params.spec:q}"
        " --out {params.out} --manifest {output.manifest} > {log} 2>&1"
