// What happens to channels between tasks.

// The answer of a task that asks a question; a fault ends the run in one sentence.
def answer(path) {
    def found = new groovy.json.JsonSlurper().parseText(path.text)
    if (found.fault) { error found.fault }
    found.warnings?.each { warning -> log.warn("${found.sample ? "sample ${found.sample}: " : ''}${warning}") }
    return found
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
