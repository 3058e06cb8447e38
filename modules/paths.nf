// Paths of a run: do they exist, have they changed?

def existing(name, parameter, sample = null, folder = null) {
    def whose = "${sample ? "sample ${sample}: " : ''}parameter ${parameter}"
    def path = address(name) ? null : located(name, folder)
    if (!(path?.toUri()?.scheme in ['file', 'http', 'https'])) { exit(2, "${whose}: ${path?.toUri() ?: name} is an address, where the workflow reads images alone; download it") }
    if (!path.exists()) { exit(2, "${whose}: ${name} does not exist; check the path") }
    return path
}

// The folder of a pattern of planes, as 'planes/*.tif', and what follows it; a path that exists is no pattern.
def split_pattern(name, folder = null) {
    def parts = name.toString().tokenize('/')
    def first = parts.findIndexOf { part -> part ==~ /.*[*?\[].*/ }
    if (first < 0 || located(name, folder).exists()) { return [name, ''] }
    if (name.toString().contains("'")) { exit(2, "pattern ${name} must have no quotes; rename the files, or give their folder") }
    def before = "${name.toString().startsWith('/') ? '/' : ''}${parts.take(first).join('/')}"
    return [located(before ?: '.', folder).normalize(), parts.drop(first).join('/')]
}

// The path of a name, which may be relative to a folder.
def located(name, folder) {
    def path = name instanceof java.nio.file.Path ? name : file(name.toString(), glob: false)
    return folder != null && !name.toString().startsWith('/') && !name.toString().contains('://') ? folder.resolve(name.toString()) : path
}

// An address in quotes, as a command takes it; null for a path.
def address(name) {
    def text = name.toString()
    return text ==~ /(https?|s3|gs):\/\/.+/ && !text.toLowerCase().endsWith('.csv') ? "'${text.replace("'", "'\\''")}'".toString() : null
}

// Results of samples, [meta, files], whose inputs are still as they were when the run began; a change ends the run.
def unchanged(results, samples) {
    return results.join(samples).map { meta, files, sample ->
        def changed = sample.seen.find { path, seen -> digest(path) != seen }
        if (changed) { error "sample ${meta.id}: ${changed.key} was changed during the run, so there is no result; run again" }
        [meta, files]
    }
}

// Size and time of a file; names, sizes and times of all that lies in a directory, of which Nextflow looks at its own alone.
def digest(path) {
    if (!path.isDirectory()) { return "${path.size()} ${path.lastModified()}".toString() }
    def lines = list_files('', path)
    def dangling = lines.find { line -> line.startsWith('!') }
    if (dangling) { error "${dangling.substring(1)} is a link to nothing; restore what it points to" }  // ends tasks, which exit leaves behind
    return lines.sort().join('\n').md5()
}

// One line for each file below a folder; one that begins with ! for a link to nothing. A link lists itself, hence the real path.
def list_files(prefix, folder) {
    return folder.toRealPath().listFiles().collect { entry ->
        def name = "${prefix}${entry.name}"
        !entry.exists() ? "!${entry}".toString()
            : entry.isDirectory() ? list_files("${name}/", entry)
            : "${name} ${entry.size()} ${entry.lastModified()}".toString()
    }.flatten()
}
