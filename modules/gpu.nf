// The gpu profile asks for the field of the whole volume, by a GPU. Nothing else is fitted there.

def has_gpu(profile) {
    return 'gpu' in profile.tokenize(',')
}

// Settled parameters, without a backend that the profile alone asks for where it has nothing to fit; the run says so.
def check_gpu(asked, settled, profile) {
    if (asked.backend == 'gpu' && settled.bias == 'sections') {
        def got = 'parameter backend gpu is for the field of the whole volume, and bias is sections, which are fitted on CPUs'
        exit(2, "${got}; give bias volume or two_pass, or backend cpu")
    }
    def reason = [
        sections: 'bias is sections, which are fitted on CPUs',
        off: "bias is off${settled.harmonize.toString() == 'off' ? '' : ' with harmonize'}",
    ][settled.bias] ?: settled.backend in ['cpu', 'itk'] ? "backend is ${settled.backend}" : null
    if (reason && (has_gpu(profile) || asked.backend == 'gpu')) { log.info("no task uses a GPU: ${reason}") }
    return reason && asked.backend == null ? settled + [backend: 'auto'] : settled
}

// Say that `auto` took the CPU in a task that was given a GPU. Files: what N4_VOLUME made.
def tell_fallback(meta, files) {
    def numbers = new groovy.json.JsonSlurper().parseText(files.find { path -> path.name.endsWith('.json') }.text)
    if (numbers.fields?.any { field -> field.backend == 'cpu' }) {
        log.warn("sample ${meta.id}: backend auto took the CPU, as no GPU works in its task; backend gpu says why, and ends the run")
    }
}

// How a scheduler is asked for one GPU, where `gpu_options` does not say it. PBS takes processors and memory from the same option.
def gpu_request(task) {
    def megabytes = "${task.memory.toMega()}mb"
    return params.gpu_options ?: [
        slurm: '--gres=gpu:1',
        pbs: "-l nodes=1:ppn=${task.cpus}:gpus=1",
        pbspro: "-l select=1:ncpus=${task.cpus}:mem=${megabytes}:ngpus=1",
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

// With the gpu profile, a directive of a task for a GPU: what the site's configuration says for every task, and the GPU's own
// part. Set in a profile, that part would replace what the site says.
def with_gpu(name, task, own, separator = ' ') {
    def site = workflow.session.config.process?.get(name)
    def value = site instanceof Closure ? site.cloneWith([task: task, params: params, workflow: workflow]).call() : site
    return [value, has_gpu(workflow.profile) ? own : null].flatten().findAll().join(separator)
}
