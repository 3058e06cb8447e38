// Is there room for what a run writes? Asked before anything is estimated, not found out after hours.

include { disk; lacking; links_allowed } from './disks'

// Hand on all samples once every disk that they are written to has room for them.
workflow WITH_ROOM {
    take:
    samples
    outdir
    mode

    main:
    asked = samples.toList().flatMap { all ->
        if (all) { check_room(all, workflow.workDir, file(outdir, glob: false), mode) }
        all
    }

    emit:
    asked
}

// End the run where a disk lacks room. A resumed run is not asked for samples that were granted theirs before: they may have
// written a part of it. What was granted is kept in the work directory, and goes with it.
def check_room(samples, work, outdir, mode) {
    def book = work.resolve(".n4flow_room_${workflow.sessionId}")
    def granted = book.exists() ? book.readLines() : []
    def asked = samples.collectEntries { meta, sample -> ["${meta.id} ${sample.plan.needs} ${mode} ${outdir}".toString(), needs_of(sample.plan, links_allowed(work))] }
    def fresh = asked.findAll { line, _needs -> !(line in granted) }
    if (!fresh) { return }
    places_of(fresh.values(), work, outdir, mode).each { folder, what, bytes, files ->
        def missing = lacking(folder, what, bytes, files)
        if (missing) { exit(5, "${missing}; free some, or choose another -work-dir or --outdir") }
    }
    if (work.toUri().scheme == 'file') { book.text = (granted + fresh.keySet()).join('\n') }
}

// What a plan needs. Where the work directory allows no hard links, FINISH copies slabs, and JOIN_CHANNELS the results of channels.
def needs_of(plan, linked) {
    def copies = linked ? 0 : plan.channels ? 2 : 1
    return plan.needs + ['bytes', 'files'].collectEntries { name -> ["work_${name}".toString(), plan.needs["work_${name}"] + copies * plan.needs[name]] }
}

// What must have room, of plans' needs: the work directory and outdir, as one where they lie on one disk.
def places_of(needs, work, outdir, mode) {
    def all = ['bytes', 'files', 'work_bytes', 'work_files'].collectEntries { name -> [name, needs.sum { need -> need[name] }] }
    def (bytes, files) = [all.bytes + all.work_bytes, all.files + all.work_files]
    def together = disk(work) == disk(outdir)
    if (mode == 'link') {
        if (!together) { exit(2, "publish_mode link needs the work directory and outdir on one disk; give publish_mode copy, or another outdir") }
        return [[work, 'the work directory', bytes, files]]
    }
    return together
        ? [[work, 'the work directory and a copy in outdir', bytes + all.bytes, files + all.files]]
        : [[work, 'the work directory', bytes, files], [outdir, 'the results', all.bytes, all.files]]
}
