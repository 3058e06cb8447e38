// The folder of results belongs to one run at a time: `n4flow run` takes the same lock, see io/publishing.py.

// Make outdir and lock it. The lock ends with this process, or when what is returned is closed or forgotten.
def hold(outdir) {
    ['parameter outdir': outdir, '-work-dir': workflow.workDir].each { name, place ->
        if (place.toUri().scheme != 'file') { exit(2, "${name} must be a folder of a file system that all tasks see, got ${place.toUriString()}") }
    }
    def place = outdir.resolve('.pipeline_info.n4flow/lock')
    place.parent.mkdirs()
    def channel = null
    try {
        channel = java.nio.channels.FileChannel.open(place, [java.nio.file.StandardOpenOption.CREATE, java.nio.file.StandardOpenOption.WRITE] as Set)
    } catch (IOException fault) { exit(2, "parameter outdir: ${outdir} cannot be written to (${fault.message}); choose another folder") }
    def me = "process ${ProcessHandle.current().pid()} on ${InetAddress.localHost.hostName}"
    try {
        if (!channel.tryLock()) {
            exit(2, "parameter outdir: ${outdir} is being written by ${place.text ?: 'another run'}; wait until that ends, or choose another outdir")
        }
        channel.truncate(0)
        channel.write(java.nio.ByteBuffer.wrap(me.bytes))
    } catch (IOException fault) {
        log.warn("${outdir} cannot be locked (${fault.message}); let no other run write there")
        return channel
    }
    // Its last owner may just have removed the file. To read it in this process would end the lock.
    if (['cat', place.toString()].execute().text == me) { return channel }
    channel.close()
    return hold(outdir)
}

def release(outdir, channel) {
    def place = outdir.resolve('.pipeline_info.n4flow/lock')
    place.delete()
    channel.close()
    place.parent.delete()
}
