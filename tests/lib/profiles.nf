// What the configuration gives to each label, for many combinations of profiles: tests/test_gpu_profile.py runs it and reads the lines.

// A setting as a task has it, of 11.4 GB predicted and for its first try.
def settled(value, given) {
    if (!(value instanceof Closure)) { return value }
    def closure = value.clone()
    closure.delegate = [task: [attempt: 1, process: 'X', cpus: 2, ext: [memory_bytes: 11400000000L]], params: given]
    closure.resolveStrategy = Closure.DELEGATE_FIRST
    return closure.call()
}

workflow {
    def root = file("${projectDir}/../..")
    params.profiles.tokenize(';').each { profiles ->
        def config = new nextflow.config.ConfigBuilder().setProfile(profiles).setBaseDir(root).setCurrentDir(root).build()
        def labels = params.labels.tokenize(';').collectEntries { labels ->
            def found = config.process.findAll { name, _value -> !name.toString().startsWith('with') }
            config.process.each { name, value ->
                def pattern = name.toString() - 'withLabel:'
                if (name.toString().startsWith('withLabel:') && labels.tokenize(',').any { label -> label ==~ pattern }) { found = found + value }
            }
            def asked = ['memory', 'time', 'cpus', 'container', 'conda', 'accelerator', 'maxForks', 'executor'].collectEntries { name ->
                [name, settled(found[name], config.params)?.toString()]
            }
            [labels, asked + [useMamba: config.conda?.useMamba?.toString()]]
        }
        println("PROFILES " + groovy.json.JsonOutput.toJson([profiles: profiles, labels: labels]))
    }
}
