// Is there room for what a run writes? Asked before anything is estimated, not found out after hours.

include { disk; lacking } from './disks'

// Hand on all samples once every disk that they are written to has room for them.
workflow WITH_ROOM {
    take:
    samples
    outdir
    mode

    main:
    // places: [folder, what, bytes, files]
    places = samples.toList().flatMap { all ->
        all ? places_of(all.collect { _meta, sample -> sample.plan.needs }, workflow.workDir, file(outdir, glob: false), mode) : []
    }
    ROOM(places)

    emit:
    samples.combine(ROOM.out.collect().map { 'granted' }).map { meta, sample, _granted -> [meta, sample] }
}

// Ask one disk. A resumed run is not asked for what it was granted before: it may have written a part of that.
process ROOM {
    tag "${folder}"
    executor 'local'

    input:
    tuple val(folder), val(what), val(bytes), val(files)

    output:
    val granted

    exec:
    def missing = lacking(file(folder, glob: false), what, bytes, files)
    if (missing) { exit(5, "${missing}; free some, or choose another -work-dir or --outdir") }
    granted = true

    stub:
    granted = true
}

// What must have room, of plans' needs: the work directory and outdir, as one where they lie on one disk.
def places_of(needs, work, outdir, mode) {
    def all = ['bytes', 'files', 'work_bytes', 'work_files'].collectEntries { name -> [name, needs.sum { need -> need[name] }] }
    def (bytes, files) = [all.bytes + all.work_bytes, all.files + all.work_files]
    def together = disk(work) == disk(outdir)
    if (mode == 'link') {
        if (!together) { exit(2, "publish_mode link needs the work directory and outdir on one disk; give publish_mode copy, or another outdir") }
        return [[work.toUriString(), 'the work directory', bytes, files]]
    }
    return together
        ? [[work.toUriString(), 'the work directory and a copy in outdir', bytes + all.bytes, files + all.files]]
        : [[work.toUriString(), 'the work directory', bytes, files], [outdir.toUriString(), 'the results', all.bytes, all.files]]
}
