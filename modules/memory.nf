// Bytes that a task will need, as INSPECT predicted for two threads; null where it did not. A job array is no task and knows of no
// volume: conf/labels.config gives it what is the most that a task of its process was predicted to need, which is kept here.
def predicted(volume, task) {
    if (!volume.memory_bytes) { return null }
    def bytes = volume.memory_bytes + (task.cpus - 2) * volume.memory_bytes_per_thread
    System.setProperty("n4flow.memory.${task.process}", [bytes, Long.getLong("n4flow.memory.${task.process}", 0)].max().toString())
    return bytes
}
