// The phantom of the suites, made once for all of them, with what every process is given and its truth.

class Phantom {
    private static File made

    // The text of a file's place in a test's input: file('...')
    static String at(String name) {
        return "file('${folder()}/${name}')"
    }

    // The text of all files of a folder.
    static String all(String name) {
        return "[${new File(folder(), name).list().sort().collect { file -> at("${name}/${file}") }.join(', ')}]"
    }

    // The place of a new file with this text.
    static String file(String text) {
        def file = File.createTempFile('given', '.json')
        file.deleteOnExit()
        file.text = text
        return file.path
    }

    static synchronized File folder() {
        if (made == null) {
            def folder = new File('.nf-test/phantom').absoluteFile
            def said = run('make', folder.path)
            if (said) { throw new IllegalStateException("the phantom cannot be made: ${said}") }
            made = folder
        }
        return made
    }

    // What tests/checks.py finds wrong with files that a process made; nothing where they are right.
    static String wrong(String process, Object files) {
        def looked_at = [files].flatten()*.toString().findAll { name -> process == 'INSPECT' || !name.endsWith('.json') }
        return run(process, folder().path, *looked_at)
    }

    private static String run(String... arguments) {
        def python = new ProcessBuilder(['python', 'tests/checks.py', *arguments]).redirectErrorStream(true).start()
        def said = python.inputStream.text
        return python.waitFor() == 0 ? '' : said
    }
}
