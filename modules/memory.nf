// Bytes that a task will need, as INSPECT predicted for two threads; null where it did not.
def predicted(volume, cpus) {
    return volume.memory_bytes ? volume.memory_bytes + (cpus - 2) * volume.memory_bytes_per_thread : null
}
