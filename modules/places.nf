// Places of results: what lies there, and may a run replace it?

// Refuse inputs that lie where a sample's results go, results inside a folder of input, and a place that holds something else: a run replaces what is there.
def check_apart(target, inputs) {
    def inside = inputs.find { path -> path && "${real(path)}/".startsWith("${real(target)}/") }
    if (inside) { exit(2, "${inside} lies in ${target}, where the results go; choose another outdir") }
    def around = inputs.find { path -> path && path.isDirectory() && "${real(target)}/".startsWith("${real(path)}/") }
    if (around) { exit(2, "${target}, where the results go, lies in the input ${around}; choose another outdir") }
    if (target.exists() && !target.resolve('recipe.json').exists()) {
        exit(2, "${target} exists and is no result of n4flow; remove it or choose another outdir")
    }
    def others = foreign(target)
    if (others) { exit(2, "${target} holds ${others.take(5).join(', ')}, which no run wrote; move it away or choose another outdir") }
}

// Names in a result's folder that its checksums do not know; none where nothing says what belongs to it.
def foreign(target) {
    def file = target.resolve('checksums.json')
    if (!file.exists()) { return [] }
    def stated = new groovy.json.JsonSlurper().parseText(file.text)
    def written = (stated.files.keySet() + stated.stores.keySet()).collect { name -> name.tokenize('/')[0] }
    return (target.list().toList() - written - ['checksums.json']).sort()
}

// Refuse a place that holds the result of another channel.
def check_channel(target, channel) {
    def metrics = target.resolve('metrics.json')
    def held = metrics.exists() ? new groovy.json.JsonSlurper().parseText(metrics.text).parameters?.channel ?: 0 : channel ?: 0
    if (held.toString() != (channel ?: 0).toString()) {
        exit(2, "${target} holds the result of channel ${held}, and channel ${channel ?: 0} was asked for; choose another outdir, or remove that result")
    }
}

def real(path) {
    return path.toUri().scheme == 'file' ? path.toFile().canonicalPath : path.toUriString()
}
