// The formats that volumes are read from, as the package lists them.

def formats() {
    return new groovy.json.JsonSlurper().parseText(file("${moduleDir}/../python/src/n4flow/io/formats.json").text).formats
}

// A file's name without the suffix of its format.
def without_suffix(name) {
    def suffix = formats()*.suffixes.flatten().findAll { ending -> name.toLowerCase().endsWith(ending) }.max { ending -> ending.size() }
    return name.take(name.size() - (suffix ?: '').size())
}

// Refuse a header whose voxels lie in another file: a task sees, and its cache looks at, the file that is named alone.
def check_whole(path) {
    def whole = formats()*.voxels_beside.findAll().sum().find { header, _whole -> path.name.toLowerCase().endsWith(header) }
    if (whole) { exit(2, "${path} keeps its voxels in another file, which tasks do not see; save it in one file (${whole.value})") }
}
