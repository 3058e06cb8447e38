// What the provenance says of a run, each in one line; equal when a run is resumed.

// All parameters, in the order of their names.
def as_json(params) {
    return groovy.json.JsonOutput.toJson(params.toSorted { entry -> entry.key })
}

// What the engine knows of the run and of its inputs.
def described(run, samples) {
    def known = [
        command: run.commandLine.replaceAll(/ -resume( [0-9a-f-]{36})?/, ''), nextflow: run.nextflow.version.toString(),
        profile: run.profile, container_engine: run.containerEngine, session: run.sessionId.toString(), user: run.userName,
        project: run.projectDir.toString(), revision: run.commitId, launch_folder: run.launchDir.toString(),
        work_folder: run.workDir.toString(),
    ]
    return samples
        .map { _meta, files -> ['image', 'mask', 'sections', 'flat_field'].collect { name -> files[name] }.findAll { path -> path && !path.toString().isInteger() }*.toString() }
        .toSortedList { a, b -> a[0] <=> b[0] }
        .map { paths -> as_json(known + [inputs: paths.flatten().unique()]) }
}

// Of the files of tasks that say which versions they ran: process, container, and lines of tool and version; a row for each kind of task.
def versions_of(tasks) {
    return tasks.map { process, container, file ->
        def tools = new groovy.json.JsonSlurper().parseText(file.text).versions ?: [:]
        [process, container, tools.collect { tool, version -> "${tool}\t${version}" }.join('\n')]
    }.unique()
}

// All versions as JSON.
def tools(versions) {
    return versions.toSortedList { a, b -> a[0] <=> b[0] }.map { rows -> groovy.json.JsonOutput.toJson(rows) }
}

// The end of a run in a table, as that of `n4flow run` (pipeline/run.py): each sample with its verdict, store and report, and the
// sentence of the verdict. A stub run has none.
def results_of(names, outdir) {
    def verdicts = names.collectEntries { name ->
        def metrics = file("${outdir}/${name}/metrics.json")
        [name, metrics.exists() ? new groovy.json.JsonSlurper().parseText(metrics.text).verdict : null]
    }.findAll { _name, verdict -> verdict }
    if (!verdicts) { return '' }
    def rows = [['sample', 'verdict', 'store', 'report']] + verdicts.collect { name, verdict ->
        def folder = file("${outdir}/${name}")
        [name, verdict.status, "${folder}/${name}.ome.zarr".toString(), "${folder}/report.html".toString()]
    }
    def widths = rows.transpose().collect { column -> column*.size().max() }
    def lines = rows.collect { row -> [row, widths].transpose().collect { cell, width -> cell.padRight(width) }.join('  ').stripTrailing() }
    return (lines + verdicts.collect { name, verdict -> "${name}: ${verdict.sentence}".toString() }).join('\n')
}
