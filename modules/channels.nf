// What happens to channels between tasks.

// The answer of a task that asks a question; a fault ends the run in one sentence.
def answer(path) {
    def found = new groovy.json.JsonSlurper().parseText(path.text)
    if (found.fault) { error found.fault }
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

// Names, sizes and times of all that lies in a directory: Nextflow looks at the directory's own alone.
def digest(path) {
    if (!path.isDirectory()) { return null }
    def lines = []
    java.nio.file.Files.walk(path, java.nio.file.FileVisitOption.FOLLOW_LINKS).withCloseable { walk ->
        walk.iterator().each { entry ->
            if (!entry.isDirectory()) { lines << "${path.relativize(entry)} ${entry.size()} ${entry.lastModified()}" }
        }
    }
    return lines.sort().join('\n').md5()
}
