// What happens to channels between tasks.

// The answer of a task that asks a question; a fault ends the run in one sentence.
def answer(path) {
    def found = plain(new groovy.json.JsonSlurper().parseText(path.text))
    // Nothing runs beside the question for a GPU. Beside others tasks do: `error` ends them, `exit` would leave them behind.
    if (found.exit_code == 3) { exit(3, found.fault) }
    if (found.fault) { error found.fault }
    found.warnings?.each { warning -> log.warn("${found.sample ? "sample ${found.sample}: " : ''}${warning}") }
    return found
}

// JSON as maps that several operators may read at a time: those of the parser are built when they are first read.
def plain(json) {
    if (json instanceof Map) { return json.collectEntries { key, value -> [(key): plain(value)] } }
    return json instanceof List ? json.collect { value -> plain(value) } : json
}

// A plan's voxel size as 'z y x' in micrometres.
def spacing(plan) {
    return plan.voxel_um.values().join(' ')
}

// Collect the files of every part of a sample, in the order of their names, as soon as all have come.
def gather(parts, counts) {
    return parts
        .combine(counts, by: 0)
        .map { meta, files, count -> [groupKey(meta, count), files] }
        .groupTuple()
        .map { key, files -> [key.getGroupTarget(), files.flatten().sort { path -> path.name }] }
}

// All parameters in one line, as the provenance keeps them.
def as_json(params) {
    return groovy.json.JsonOutput.toJson(params.toSorted { entry -> entry.key })
}

// What the engine knows of the run and of its inputs, in one line; equal when a run is resumed.
def described(run, samples) {
    def known = [
        command: run.commandLine.replaceAll(/ -resume( [0-9a-f-]{36})?/, ''), nextflow: run.nextflow.version.toString(),
        profile: run.profile, container_engine: run.containerEngine, session: run.sessionId.toString(), user: run.userName,
        project: run.projectDir.toString(), revision: run.commitId, launch_folder: run.launchDir.toString(),
        work_folder: run.workDir.toString(),
    ]
    return samples
        .map { _meta, _volume, image, mask, table, flat -> [image, mask, table, flat].flatten()*.toString() }
        .toSortedList { a, b -> a[0] <=> b[0] }
        .map { paths -> as_json(known + [inputs: paths.flatten().unique()]) }
}

// Versions in one line: process, container, and lines of tool and version.
def tools(versions) {
    return versions.unique().toSortedList { a, b -> a[0] <=> b[0] }.map { rows -> groovy.json.JsonOutput.toJson(rows) }
}
