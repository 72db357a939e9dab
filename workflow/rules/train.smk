rule train:
    input:
        dataset="<run>/dataset.parquet",
        parent=of_run(FILES.parent_files),
        steering=of_run(FILES.steering_files),
        code=code("train"),
    output:
        weights="<run>/adapter/adapter_model.safetensors",
        config="<run>/adapter/adapter_config.json",
        checkpoints="<run>/checkpoints.safetensors",
        train_log="<run>/train_log.jsonl",
        manifest="<run>/train.manifest.json",
    log:
        "<run>/train.log",
    benchmark:
        "<run>/train.benchmark.jsonl"
    conda:
        "../envs/train.yaml"
    resources:
        python="python",
        token_budget=CONFIG["resources"]["token_budget"],
        batching=CONFIG["resources"]["batching"],
        gpu=GPU,
        mem_mb=lambda wildcards, attempt: 32000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        spec=of_run(as_spec(PLAN.train_spec)),
        parent=of_run(FILES.parent_flags),
        steering=of_run(FILES.steering_flags),
        adapter=subpath(output.weights, parent=True),
    shell:
        "GPUS={resources.gpu} {resources.python} workflow/scripts/train.py --spec {params.spec:q} --dataset {input.dataset} {params.parent} {params.steering}"
        " --token-budget {resources.token_budget} --batching {resources.batching}"
        " --adapter {params.adapter} --checkpoints {output.checkpoints} --train-log {output.train_log}"
        " --manifest {output.manifest} > {log} 2>&1"


rule train_full:
    input:
        dataset="<run>/dataset.parquet",
        parent=of_run(FILES.parent_files),
        steering=of_run(FILES.steering_files),
        code=code("train"),
    output:
        [f"<run>/model/{name}" for name in files.BASE_FILES],
        train_log="<run>/model/train_log.jsonl",
        manifest="<run>/model/train.manifest.json",
    log:
        "<run>/model/train.log",
    benchmark:
        "<run>/model/train.benchmark.jsonl"
    conda:
        "../envs/train.yaml"
    resources:
        python="python",
        token_budget=CONFIG["resources"]["token_budget"],
        batching=CONFIG["resources"]["batching"],
        gpu=train_gpus,
        processes=train_processes,
        mem_mb=lambda wildcards, attempt: 128000 * attempt,
        runtime=lambda wildcards, attempt: 480 * attempt,
    params:
        spec=of_run(as_spec(PLAN.train_spec)),
        parent=of_run(FILES.parent_flags),
        steering=of_run(FILES.steering_flags),
        model=subpath(output[0], parent=True),
    shell:
        "GPUS={resources.gpu} {resources.python} workflow/scripts/train.py --spec {params.spec:q} --dataset {input.dataset} {params.parent} {params.steering}"
        " --processes {resources.processes} --token-budget {resources.token_budget} --batching {resources.batching}"
        " --model {params.model} --train-log {output.train_log} --manifest {output.manifest} > {log} 2>&1"


rule checkpoint_adapter:
    input:
        checkpoints="<run>/checkpoints.safetensors",
        config="<run>/adapter/adapter_config.json",
        code=code("unpack_checkpoint"),
    output:
        weights="<run>/adapter-{checkpoint}/adapter_model.safetensors",
        config="<run>/adapter-{checkpoint}/adapter_config.json",
        manifest="<run>/adapter-{checkpoint}/checkpoint.manifest.json",
    log:
        "<run>/adapter-{checkpoint}/unpack.log",
    benchmark:
        "<run>/adapter-{checkpoint}/unpack.benchmark.jsonl"
    wildcard_constraints:
        checkpoint=r"(pct|step)\d+",
    conda:
        "../envs/train.yaml"
    resources:
        python="python",
        mem_mb=4000,
        runtime=10,
    params:
        spec=of_run(as_spec(PLAN.train_spec)),
        adapter=subpath(output.weights, parent=True),
    shell:
        "{resources.python} workflow/scripts/unpack_checkpoint.py --checkpoints {input.checkpoints}"
        " --config {input.config} --label {wildcards.checkpoint} --spec {params.spec:q}"
        " --adapter {params.adapter} --manifest {output.manifest} > {log} 2>&1"


rule weight_change:
    input:
        models=of_run(FILES.weight_change_files),
        code=code("weight_change"),
    output:
        norms="<run>/weight_change.json",
        manifest="<run>/weight_change.manifest.json",
    log:
        "<run>/weight_change.log",
    benchmark:
        "<run>/weight_change.benchmark.jsonl"
    conda:
        "../envs/train.yaml"
    resources:
        python="python",
        mem_mb=16000,
        runtime=60,
    params:
        spec=of_run(as_spec(PLAN.train_spec)),
        models=of_run(FILES.weight_change_flags),
    shell:
        "{resources.python} workflow/scripts/weight_change.py {params.models} --spec {params.spec:q}"
        " --out {output.norms} --manifest {output.manifest} > {log} 2>&1"
