// Folders of results: taken away as a whole, and compared with one another.

// Delete a folder under another name: a part of a result is not to be put back.
def discard(folder) {
    def gone = folder.resolveSibling("${folder.name}.gone")
    gone.deleteDir()
    if (folder.exists()) { java.nio.file.Files.move(folder, gone) }
    gone.deleteDir()
}

// Names and sizes of all files, and the checksums that say what is in them.
def contents(folder) {
    def checksums = folder.resolve('checksums.json')
    if (!checksums.exists()) { return folder }
    def files = [checksums.text]
    folder.eachFileRecurse { path -> if (!path.isDirectory()) { files << "${folder.relativize(path)} ${path.size()}".toString() } }
    return files.toSorted()
}
