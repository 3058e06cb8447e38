// Disks that folders lie on, and what is free on them.

// What a folder's disk lacks, in words; null where there is room, and where nobody knows, as in an object store.
def lacking(folder, what, bytes, files) {
    def place = standing(folder)
    if (!place) { return null }
    def free = place.toFile().usableSpace
    if (bytes > free) {
        return String.format(Locale.ROOT, '%s needs up to %.3f GB for %s and has %.3f GB free', folder, bytes / 1e9, what, free / 1e9)
    }
    // all inodes and those free; some file systems state none
    def inodes = ['stat', '-f', '-c', '%c %d', place.toString()].execute().text.trim().tokenize()*.toLong()
    return inodes[0] > 0 && files > inodes[1] ? "${folder} needs up to ${files} files for ${what} and has inodes for ${inodes[1]}".toString() : null
}

// Number of the disk that a folder lies on or will lie on; without one, the kind of store.
def disk(folder) {
    def place = standing(folder)
    return place ? java.nio.file.Files.getAttribute(place, 'unix:dev') : folder.toUri().scheme
}

// The folder itself or the next above it that exists; null where it is no path of this machine.
def standing(folder) {
    if (folder.toUri().scheme != 'file') { return null }
    return folder.exists() ? folder : standing(folder.toAbsolutePath().parent)
}

// Whether files of a folder may have hard links; true where nobody knows, as in an object store.
def links_allowed(folder) {
    def place = standing(folder)
    if (!place) { return true }
    def file = java.nio.file.Files.createTempFile(place, '.n4flow', '')
    def link = place.resolve("${file.name}.link")
    def allowed = true
    try { java.nio.file.Files.createLink(link, file) } catch (IOException | UnsupportedOperationException _fault) { allowed = false }
    [file, link].each { made -> java.nio.file.Files.deleteIfExists(made) }
    return allowed
}
