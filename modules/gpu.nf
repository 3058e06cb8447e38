// The gpu profile asks for the field of the whole volume, by a GPU. Nothing else is fitted there.

def has_gpu(profile) {
    return 'gpu' in profile.tokenize(',')
}

// Settled parameters, without a backend that the profile alone asks for where it has nothing to fit; the run says so.
def check_gpu(asked, settled, profile) {
    if (asked.backend == 'gpu' && settled.bias == 'sections') {
        def got = 'parameter backend gpu is for the field of the whole volume, and bias is sections, which are fitted on CPUs'
        exit(2, "${got}; give bias volume or two_pass, or backend cpu")
    }
    def reason = [
        sections: 'bias is sections, which are fitted on CPUs',
        off: "bias is off${settled.harmonize.toString() == 'off' ? '' : ' with harmonize'}",
    ][settled.bias] ?: settled.backend in ['cpu', 'itk'] ? "backend is ${settled.backend}" : null
    if (reason && (has_gpu(profile) || asked.backend == 'gpu')) { log.info("no task uses a GPU: ${reason}") }
    return reason && asked.backend == null ? settled + [backend: 'auto'] : settled
}

// Say that `auto` took the CPU in a task that was given a GPU. Files: what N4_VOLUME made.
def tell_fallback(meta, files) {
    def numbers = new groovy.json.JsonSlurper().parseText(files.find { path -> path.name.endsWith('.json') }.text)
    if (numbers.fields?.any { field -> field.backend == 'cpu' }) {
        log.warn("sample ${meta.id}: backend auto took the CPU, as no GPU works in its task; backend gpu says why, and ends the run")
    }
}
