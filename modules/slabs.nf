// Runs of planes, each the work of one task of every streaming process.

// [name: '000064', planes: '64:128', shrink: 4, slab_planes: 64, memory_bytes: ...] for each slab of a plan.
def slabs_of(plan) {
    def common = plan.subMap('shrink', 'slab_planes', 'memory_bytes', 'memory_bytes_per_thread')
    return plan.slabs.collect { slab -> [name: String.format('%06d', slab[0]), planes: slab.join(':')] + common }
}

// Bytes that a task of a process will need, as INSPECT foresaw for two threads; null where it did not.
def predicted(slab, process, cpus) {
    def two = slab.memory_bytes?.get(process)
    return two ? two + (cpus - 2) * slab.memory_bytes_per_thread[process] : null
}
