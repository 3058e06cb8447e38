// Runs of planes, each the work of one task of every streaming process.

// [name: '000064', planes: '64:128', shrink: 4, slab_planes: 64, frame: '0:512,0:512'] for each slab of a plan.
def slabs_of(plan) {
    def common = plan.subMap('shrink', 'slab_planes', 'frame')
    return plan.slabs.collect { slab -> [name: String.format('%06d', slab[0]), planes: slab.join(':')] + common }
}

// Give the volume of each [meta, volume, ...] the bytes that INSPECT foresaw for a process, and not those for others:
// a parameter that changes what one process needs is then no change for the rest of a resumed run.
def foreseen(inputs, plans, process) {
    return inputs.combine(plans, by: 0).map { row ->
        def memory = ['memory_bytes', 'memory_bytes_per_thread'].collectEntries { name -> [name, row.last()[name]?.get(process)] }
        [row[0], row[1] + memory] + row[2..-2]
    }
}

// Bytes that a task will need, as INSPECT foresaw for two threads; null where it did not.
def predicted(volume, cpus) {
    return volume.memory_bytes ? volume.memory_bytes + (cpus - 2) * volume.memory_bytes_per_thread : null
}
