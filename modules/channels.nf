// The channel of samples, [meta, sample]. A sample is a map that nobody changes: several operators may read it at a time.

// What a process takes of each sample: [meta, volume] and the fields that are named, which are the names of its inputs.
// Of the memory that INSPECT predicted, `volume` gets that of this process alone: a parameter that changes what one
// process needs is then no change for the rest of a resumed run.
def inputs(samples, process, fields) {
    return samples.map { meta, sample ->
        def memory = ['memory_bytes', 'memory_bytes_per_thread'].collectEntries { name -> [name, sample.plan?.get(name)?.get(process)] }
        [meta, sample.volume + memory] + fields.collect { field -> sample[field] }
    }
}

// Add the files that a process made of each sample to those of a field, where each takes the place of an older one of its name.
def add(samples, field, made) {
    return samples.join(made).map { meta, sample, files ->
        [meta, sample + [(field): sample[field].findAll { old -> !(old.name in files*.name) } + files]]
    }
}

// Add what the tasks for a sample's parts, 'slabs' or 'batches' of its plan, made: in the order of the files' names, once all have come.
def gather(samples, field, made, parts) {
    def complete = made
        .combine(samples, by: 0)
        .map { meta, files, sample -> [groupKey(meta, sample.plan[parts].size()), files] }
        .groupTuple()
        .map { key, files -> [key.getGroupTarget(), files.flatten().sort { path -> path.name }] }
    return add(samples, field, complete)
}

// A sample for each slab of planes: slab = [name: '000064', planes: '64:128', shrink: 4, slab_planes: 64, frame: '0:512,0:512']
def slabs_of(samples) {
    return samples.flatMap { meta, sample ->
        def common = sample.plan.subMap('shrink', 'slab_planes', 'frame')
        sample.plan.slabs.collect { slab -> [meta, sample + [slab: [name: String.format('%06d', slab[0]), planes: slab.join(':')] + common]] }
    }
}

// A sample for each batch of sections: batch = [name: '000008', sections: '8:16']
def batches_of(samples) {
    return samples.flatMap { meta, sample ->
        sample.plan.batches.collect { batch -> [meta, sample + [batch: [name: String.format('%06d', batch[0]), sections: batch.join(':')]]] }
    }
}

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
