// Put a sample's results into outdir by the head process: complete under the sample's name, or not at all.
process PUBLISH {
    tag "${meta.id}"
    executor 'local'
    cache false

    input:
    tuple val(meta), val(results)
    val outdir
    val mode

    output:
    tuple val(meta), val(published), emit: published

    exec:
    published = publish(results, file(outdir), meta.id, mode)

    stub:
    published = "${outdir}/${meta.id}"
}

// Copy or link a folder beside its place, then put it there in one step; what is there already is left alone if equal.
def publish(source, outdir, name, mode) {
    def target = outdir.resolve(name)
    def partial = outdir.resolve(".${name}.partial")
    def old = outdir.resolve(".${name}.old")
    if (contents(source) == contents(target)) { return target }
    try {
        [partial, old].each { folder -> folder.deleteDir() }
        partial.mkdirs()
        source.eachFileRecurse { path ->
            def place = partial.resolve(source.relativize(path))
            if (path.isDirectory()) { place.mkdirs() }
            else if (mode == 'link') { java.nio.file.Files.createLink(place, path) }
            else { java.nio.file.Files.copy(path, place) }
        }
        if (target.exists()) { java.nio.file.Files.move(target, old) }
        java.nio.file.Files.move(partial, target)
        old.deleteDir()
    } catch (IOException fault) {
        partial.deleteDir()
        if (!target.exists() && old.exists()) { java.nio.file.Files.move(old, target) }
        throw new IOException("sample ${name} is not published in ${outdir} (${fault.message})", fault)
    }
    return target
}

// Names and sizes of all files, and the checksums that say what is in them.
def contents(folder) {
    def checksums = folder.resolve('checksums.json')
    if (!checksums.exists()) { return folder }
    def files = [checksums.text]
    folder.eachFileRecurse { path -> if (!path.isDirectory()) { files << "${folder.relativize(path)} ${path.size()}".toString() } }
    return files.toSorted()
}
