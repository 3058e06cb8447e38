// Bytes that a task will need, as INSPECT predicted for two threads; null where it did not. A job array is no task and knows of no
// volume: conf/labels.config gives it what is the most that a task of its process was predicted to need, which is kept here.
def predicted(volume, task) {
    if (!volume.memory_bytes) { return null }
    return asked(volume.memory_bytes + (task.cpus - 2) * volume.memory_bytes_per_thread, task)
}

// Bytes that INSPECT will need, which nothing has looked into. It reads a volume in blocks; a file of one piece that is compressed, or
// that ITK reads, it holds whole, unpacked, and twice while it is cast.
def unseen(files, task) {
    def held = [files].flatten().findAll { file -> !file.isDirectory() }.collect { file -> file.size() * (file.name ==~ /.+\.(gz|bz2|mha|nrrd)/ ? 8 : 3) }
    return asked(1_000_000_000 + held.sum(0L), task)
}

def asked(bytes, task) {
    System.setProperty("n4flow.memory.${task.process}", [bytes, Long.getLong("n4flow.memory.${task.process}", 0)].max().toString())
    return bytes
}
