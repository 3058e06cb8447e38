// What a task for a GPU gets with the gpu profile: of the scheduler, of the container, of the machine.

// How a scheduler is asked for one GPU, where a configuration does not say it. PBS takes processors and memory from the same option.
def gpu_request(task) {
    return task.ext.gpu_options ?: [
        slurm: '--gres=gpu:1',
        pbs: "-l nodes=1:ppn=${task.cpus}:gpus=1",
        pbspro: "-l select=1:ncpus=${task.cpus}:mem=${task.memory.toMega()}mb:ngpus=1",
        lsf: '-gpu "num=1"',
        sge: '-l gpu=1',
    ][task.executor]
}

// What gives a container the GPU of its machine.
def gpu_container() {
    return [docker: '--gpus all', podman: '--device nvidia.com/gpu=all', apptainer: '--nv', singularity: '--nv'][workflow.containerEngine]
}

// On a machine with several GPUs, commands that take one which no other task of this user has, until the task ends.
def gpu_choice(task) {
    return task.executor != 'local' ? null : '''
        devices=${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true)}
        for device in ${devices//,/ }; do
            exec 9>"${TMPDIR:-/tmp}/n4flow-gpu-$device.$UID"
            if flock -n 9; then export CUDA_VISIBLE_DEVICES=$device; break; fi
        done
        '''.stripIndent()
}

// A directive of a task that may use a GPU: what the site's configuration says for every task and, where conf/gpu.config gives it
// one, the GPU's own part. Set in a configuration, that part would replace what the site says.
def with_gpu(name, task, own, separator = ' ') {
    def site = workflow.session.config.process?.get(name)
    def value = site instanceof Closure ? site.cloneWith([task: task, params: params, workflow: workflow]).call() : site
    return [value, task.accelerator ? own : null].flatten().findAll().join(separator)
}
