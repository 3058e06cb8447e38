// Put a sample's results into outdir by the head process: complete under the sample's name, or not at all.

include { contents; discard } from './folders'

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

// Say on the terminal what the verdict on a published sample is; a stub run has none.
def tell_verdict(meta, folder) {
    def metrics = file("${folder}/metrics.json")
    def verdict = metrics.exists() ? new groovy.json.JsonSlurper().parseText(metrics.text).verdict : null
    if (verdict?.status == 'look') { log.warn("sample ${meta.id}: look, ${verdict.sentence}") }
    else if (verdict) { log.info("sample ${meta.id}: ${verdict.status}, ${verdict.sentence}") }
}

// Copy or link a folder beside its place, then put it there in one step; what is there already is left alone if equal.
def publish(source, outdir, name, mode) {
    def target = outdir.resolve(name)
    def partial = outdir.resolve(".${name}.partial")
    def old = outdir.resolve(".${name}.old")
    try {
        if (!target.exists() && old.exists()) { java.nio.file.Files.move(old, target) }  // a run was killed between two moves
        partial.deleteDir()
        discard(old)
        if (contents(source) == contents(target)) { return target }
        partial.mkdirs()
        source.eachFileRecurse { path ->
            def place = partial.resolve(source.relativize(path))
            if (path.isDirectory()) { place.mkdirs() }
            else if (mode == 'link') { java.nio.file.Files.createLink(place, path) }
            else { java.nio.file.Files.copy(path, place) }
        }
        if (target.exists()) { java.nio.file.Files.move(target, old) }
        java.nio.file.Files.move(partial, target)
        discard(old)
    } catch (IOException fault) {
        partial.deleteDir()
        if (!target.exists() && old.exists()) { java.nio.file.Files.move(old, target) }
        throw new IOException("sample ${name} is not published in ${outdir} (${fault.message})", fault)
    }
    return target
}
