// What the head process does before and between tasks: check parameters, read the sample sheet, gather slabs.

// Stop before the first task when a parameter is unknown, of another type or out of range.
// n4flow.parameters checks the same schema with the same sentences for `n4flow run`; one test holds both to it.
def check_parameters(params, schema_file) {
    def schema = new groovy.json.JsonSlurper().parseText(schema_file.text)
    def rules = schema['$defs'].values().collectEntries { group -> group.properties }
    params.each { name, value ->
        if (!rules.containsKey(name)) {
            error "unknown parameter ${name}; did you mean ${nearest(name.replace('-', '_'), rules.keySet())}?"
        }
        if (value != null && !allowed(value, rules[name])) {
            def shown = value instanceof CharSequence ? "'${value}'" : value
            error "parameter ${name} must be ${expectation(rules[name])}, got ${shown}"
        }
    }
    if (params.input == null || params.input.toString() == '') {
        error "parameter input is missing; give a volume, a CSV of samples, or 'phantom' to try the installation"
    }
}

// The name with the smallest edit distance.
def nearest(name, names) {
    return names.min { other -> distance(name, other) }
}

def distance(a, b) {
    def row = (0..b.size()).toList()
    (0..<a.size()).each { i ->
        def next = [i + 1]
        (0..<b.size()).each { j ->
            next << [row[j + 1] + 1, next[j] + 1, row[j] + (a[i] == b[j] ? 0 : 1)].min()
        }
        row = next
    }
    return row[-1]
}

// Whether a value, or the text of one, fits a rule of the schema.
def allowed(value, rule) {
    def text = value.toString()
    def types = rule.type instanceof List ? rule.type : [rule.type]
    def whole = types.contains('integer') && text.isInteger()
    def numeric = whole || (types.contains('number') && text.isNumber())
    if (rule.minimum != null || rule.exclusiveMinimum != null || rule.maximum != null) {
        if (numeric) {
            def number = text.toDouble()
            if (rule.minimum != null && number < rule.minimum) { return false }
            if (rule.exclusiveMinimum != null && number <= rule.exclusiveMinimum) { return false }
            if (rule.maximum != null && number > rule.maximum) { return false }
            return true
        }
    }
    if (rule['enum']) { return rule['enum'].contains(text) }
    if (rule.pattern) { return text ==~ rule.pattern }
    if (types.contains('boolean')) { return text in ['true', 'false'] }
    return numeric || types.contains('string')
}

// What a rule asks for, in words.
def expectation(rule) {
    if (rule['enum']) {
        def names = rule['enum']
        return names.size() == 1 ? names[0] : names.init().join(', ') + ' or ' + names.last()
    }
    def words = [integer: 'a whole number', number: 'a number', string: 'text', boolean: 'true or false']
    def types = rule.type instanceof List ? rule.type : [rule.type]
    def text = rule.pattern ? 'whole numbers separated by commas' : types.collect { type -> words[type] }.join(' or ')
    if (rule.exclusiveMinimum != null) {
        text += " above ${rule.exclusiveMinimum}" + (rule.maximum != null ? " to ${rule.maximum}" : '')
    } else if (rule.minimum != null) {
        text += " from ${rule.minimum}" + (rule.maximum != null ? " to ${rule.maximum}" : ' upwards')
    }
    return text + (rule.unit ? " (${rule.unit})" : '')
}

// One map for each sample: sample, image and, where given, mask, sections, voxel_um.
def read_samples(params) {
    def input = existing(params.input, 'input')
    if (!input.name.toLowerCase().endsWith('.csv')) {
        def name = input.name.replaceFirst(/(?i)(\.ome)?(\.zarr|\.tiff?|\.nii|\.nrrd|\.mha|\.mhd|\.npy)?(\.zip|\.gz)?$/, '')
        return [[sample: name, image: input]]
    }
    def columns = ['sample', 'image', 'mask', 'sections', 'voxel_um']
    def rows = input.splitCsv(header: true, strip: true)
    if (!rows) { error "sample sheet ${input.name} has no rows; give one line for each sample under a header" }
    def unknown = rows[0].keySet().findAll { column -> !columns.contains(column) }
    if (unknown || !rows[0].containsKey('sample') || !rows[0].containsKey('image')) {
        error "sample sheet ${input.name} has columns ${rows[0].keySet().join(', ')}; expected sample, image and, optionally, mask, sections, voxel_um"
    }
    def twice = rows.countBy { row -> row.sample }.find { _sample, count -> count > 1 }
    if (twice) { error "sample sheet ${input.name} names sample ${twice.key} in ${twice.value} rows; give every sample a name of its own" }
    return rows.collect { row -> row + [image: existing(row.image, 'image', row.sample, input.parent)] + [folder: input.parent] }
}

// The files of one sample: [meta, volume, image, mask, table]; mask and table are empty lists where not given.
def sample_files(row, params) {
    def sections = row.sections ?: params.sections
    def counted = sections.toString().isInteger()
    def table = counted ? [] : existing(sections, 'sections', row.sample, row.sections ? row.folder : null)
    def mask = row.mask ?: params.mask
    if (mask) { mask = existing(mask, 'mask', row.sample, row.mask ? row.folder : null) }
    def volume = [
        voxel_um: row.voxel_um ?: params.voxel_um,
        channel: params.channel,
        sections: counted ? sections : null,
        digests: [row.image, mask].collect { path -> path ? digest(path) : null },
    ]
    return [[id: row.sample], volume, row.image, mask ?: [], table]
}

def existing(name, parameter, sample = null, folder = null) {
    def path = name instanceof java.nio.file.Path ? name : file(name.toString(), glob: false)
    if (folder != null && !name.toString().startsWith('/') && !name.toString().contains('://')) {
        path = folder.resolve(name.toString())
    }
    if (!path.exists()) {
        error "${sample ? "sample ${sample}: " : ''}parameter ${parameter}: ${name} does not exist; check the path"
    }
    return path
}

// Names, sizes and times of all that lies in a directory: Nextflow looks at the directory's own alone.
def digest(path) {
    if (!path.isDirectory()) { return null }
    def lines = []
    java.nio.file.Files.walk(path, java.nio.file.FileVisitOption.FOLLOW_LINKS).withCloseable { walk ->
        walk.iterator().each { entry ->
            if (!entry.isDirectory()) { lines << "${path.relativize(entry)} ${entry.size()} ${entry.lastModified()}" }
        }
    }
    return lines.sort().join('\n').md5()
}

// The answer of a task that asks a question; a fault ends the run in one sentence.
def answer(path) {
    def found = new groovy.json.JsonSlurper().parseText(path.text)
    if (found.fault) { error found.fault }
    return found
}

// Collect the files of every part of a sample, in the order of their names, as soon as all have come.
def gather(parts, counts) {
    return parts
        .combine(counts, by: 0)
        .map { meta, files, count -> [groupKey(meta, count), files] }
        .groupTuple()
        .map { key, files -> [key.getGroupTarget(), files.flatten().sort { path -> path.name }] }
}

// All parameters in one line, as the provenance keeps them.
def as_json(params) {
    return groovy.json.JsonOutput.toJson(params.toSorted { entry -> entry.key })
}
