// What ended a run, in one sentence with its remedy: the last line that a user sees.

// `code` is the failed task's exit code, `report` what Nextflow says of it; null where there is nothing to add.
def explain(code, report) {
    def task = report?.find(/process > '[^']+'/)?.minus("process > '")?.minus("'")?.replaceFirst(/^([A-Z0-9_]+:)+/, '')
    if (!task) { return null }
    def said = report.readLines()*.trim().findAll { line -> line.startsWith('n4flow: ') && !line.startsWith('n4flow: warning') }
    def refused = report.find(/(?i)sbatch: error: .*|.*Process requirement exceeds available .*/)?.trim()
    return "task ${task} ${reason(code, report, refused, said ? said.last() - 'n4flow: ' : null)}; then run again with -resume"
}

def reason(code, report, refused, said) {
    if (report.contains('DUE TO NODE FAILURE')) { return 'was lost with its node, which went down; nothing needs to be changed, or exclude the node' }
    if (report.contains('DUE TO TIME LIMIT') || code == 140) {
        return 'reached its time limit; give its label more time in a configuration file (-c), or each task less with --slab_planes or --sections_per_task'
    }
    if (report =~ /No space left on device|Disk quota exceeded/ || code == 5 || !said && left(report) < 1000000) {
        return "found no space left (${said ?: 'disk or quota full'}); free some, or choose another -work-dir or --outdir"
    }
    // Where a task is ended before its command has begun, its exit code is Nextflow's wrapper's or none at all, and only
    // Slurm says why.
    def vanished = code == null || code == Integer.MAX_VALUE
    if (code in [130, 143] || code != 137 && !said && report =~ /\*\*\* (JOB|STEP) \S+ ON \S+ CANCELLED AT /) {
        return 'was cancelled from outside (scancel, a shutdown, Ctrl-C); nothing needs to be changed'
    }
    if (code == 137) {
        return 'was killed, at its last try too, as the system does when memory is short; allow it more memory in a configuration file (-c), or each task less with --slab_planes or --sections_per_task'
    }
    if (refused) { return "cannot be started (${refused}); set process.resourceLimits to what the largest node has (-c), or choose another partition" }
    def box = container(report)
    if (box) { return "cannot be started in its container: ${box}" }
    if (said) { return "failed: ${said}" }
    if (vanished) {
        def cause = report.find(/(?s)Caused by:\s+\S.*?(?=\n\s*\n)/)?.minus('Caused by:')?.trim()
        return "left no exit code (${cause ?: 'no cause is known'}); look at what the scheduler says of it"
    }
    return "ended with exit code ${code}, which is a fault of n4flow; its .command.err in the work directory above says more"
}

// What keeps a container engine from starting a task, with its remedy; null where it is something else.
def container(report) {
    def kept = [
        (/(?i).*(cannot connect to the docker daemon|failed to connect to the docker api).*/): 'start Docker (systemctl start docker), or take another profile than docker',
        (/(?i).*permission denied while trying to connect to the docker.*/): 'this user may not use Docker: join its group, or take -profile apptainer or podman',
        (/(?i).*(pull access denied|manifest unknown|unable to pull|reading manifest|no such image).*/): 'make images builds it here; --container_cpu and --container_cuda name others',
        (/(?i).*\b(docker|podman|apptainer|singularity): (command )?not found.*/): 'install it, or take another profile',
    ]
    def found = kept.findResult { words, remedy -> report.find(words)?.with { line -> [line.trim(), remedy] } }
    return found ? "${found[0].replaceAll(/[. ]+$/, '')}; ${found[1]}" : null
}

// Bytes that are free where the failed task ran: a full disk holds no word of it.
def left(report) {
    def folder = report.find(/(?<=Work dir:\s{1,9})\S.*/)
    def place = folder ? new File(folder) : null
    return place?.exists() ? place.usableSpace : Long.MAX_VALUE
}
